/**
 * The same commands for qemu-storage-daemon and for ours, on the same set-up: the answers, and the events before them,
 * are equal field by field, or the difference is listed in docs/qmp-differences.json with its reason.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { type Message, QmpClient } from '../qmp/client.js';
import { changing, type Exchange, images, readOnly, setUp } from './qmp-exchanges.js';
import { type JobExchange, jobs } from './qmp-job-exchanges.js';

const root = join(import.meta.dirname, '../../..');
const ourProgram = join(root, 'build/src/cli/vduse-storage-daemon.js');

interface Difference {
  readonly exchange: string;
  /** Members with dots between them, `*` for any index of a list. */
  readonly field: string;
  readonly reason: string;
}

const differences = JSON.parse(readFileSync(join(root, 'docs/qmp-differences.json'), 'utf8')) as Difference[];
const isInstalled = spawnSync('qemu-storage-daemon', ['--version']).status === 0;
const skip = isInstalled || process.env['CI'] === 'true' ? false : 'qemu-storage-daemon is not installed';

class Side {
  readonly folder: string;
  readonly process: ChildProcess;
  client!: QmpClient;

  constructor(folder: string, program: readonly string[]) {
    this.folder = folder;
    mkdirSync(folder);
    for (const image of Object.values(images)) {
      writeFileSync(join(folder, image), Buffer.alloc(image === images.odd ? 1000 : 65536, 1));
    }
    truncateSync(join(folder, images.data), 10 << 20);
    const [command, ...args] = program;
    this.process = spawn(command, [...args, ...setUp], {
      cwd: folder,
      stdio: ['ignore', 'ignore', 'inherit'],
    });
  }

  async open(): Promise<void> {
    for (;;) {
      try {
        this.client = await QmpClient.open(join(this.folder, 'qmp.sock'));
        return;
      } catch (error) {
        // Not there yet, or there and not yet listening.
        assert.equal(this.process.exitCode, null, String(error));
        await delay(20);
      }
    }
  }

  /** What events told of each job, in their order: states, and what came with other events. */
  readonly jobStories = new Map<string, unknown[]>();

  /** The answer and the events before it but those of jobs, without times and folders. */
  async exchange({ command, arguments: args }: Exchange): Promise<Message> {
    this.client.send(
      JSON.stringify({ execute: command, ...(args === undefined ? {} : { arguments: args }) }),
    );
    const events: Message[] = [];
    for (;;) {
      const line = await this.client.readLine();
      assert.ok(line !== undefined, 'the connection ended');
      const message = JSON.parse(line.replaceAll(`${this.folder}/`, ''), comparable) as Message;
      if (!('event' in message)) {
        return { events, ...message };
      }
      const { timestamp, ...event } = message;
      assert.equal(typeof timestamp, 'object');
      if (!this.#tellStory(event)) {
        events.push(event);
      }
    }
  }

  async awaitJob({ job, status }: NonNullable<JobExchange['awaits']>): Promise<void> {
    for (;;) {
      const answer = await this.exchange({ name: '', command: 'query-jobs' });
      const known = (answer['return'] as { id: string; status: string }[]).find(({ id }) => id === job);
      if ((known?.status ?? 'gone') === status) {
        return;
      }
      await delay(10);
    }
  }

  /** Jobs go on by themselves: when an event of theirs comes means nothing, their order does. */
  #tellStory({ event, data }: Message): boolean {
    const name = event as string;
    if (name !== 'JOB_STATUS_CHANGE' && !name.startsWith('BLOCK_JOB_')) {
      return false;
    }
    const { id, device, status, ...more } = data as Record<string, string>;
    const story = this.jobStories.get(id ?? device) ?? [];
    this.jobStories.set(id ?? device, story);
    // QEMU tells of jobs that rest for a moment because something else changes the graph.
    const isRest = status === 'paused' || status === 'standby';
    const isRepeated =
      (status === 'running' || status === 'ready') && story.includes(status, story.lastIndexOf('created'));
    if (!isRest && !isRepeated) {
      story.push(status ?? [name, more]);
    }
    return true;
  }

  async close(): Promise<void> {
    this.client?.close();
    this.process.kill('SIGTERM');
    if (this.process.exitCode === null && this.process.signalCode === null) {
      await once(this.process, 'exit');
    }
  }
}

/** Options in a text and lists of names have no order that means something. */
function comparable(_key: string, value: unknown): unknown {
  if (typeof value === 'string' && value.startsWith('json:')) {
    return JSON.parse(value.slice('json:'.length));
  }
  const nameOf = (item: unknown): unknown =>
    typeof item === 'object' && item !== null
      ? (Reflect.get(item, 'name') ?? Reflect.get(item, 'label'))
      : undefined;
  return Array.isArray(value) && value.every((item) => typeof nameOf(item) === 'string')
    ? value.sort((a, b) => (String(nameOf(a)) < String(nameOf(b)) ? -1 : 1))
    : value;
}

/** The fields in which two values differ. */
function differingFields(ours: unknown, theirs: unknown, path = ''): string[] {
  if (typeof ours !== 'object' || typeof theirs !== 'object' || ours === null || theirs === null) {
    return ours === theirs ? [] : [path];
  }
  if (Array.isArray(ours) !== Array.isArray(theirs)) {
    return [path];
  }
  if (Array.isArray(ours) && ours.length !== (theirs as unknown[]).length) {
    return [path];
  }
  const keys = new Set([...Object.keys(ours), ...Object.keys(theirs)]);
  return [...keys].flatMap((key) =>
    differingFields(Reflect.get(ours, key), Reflect.get(theirs, key), path === '' ? key : `${path}.${key}`),
  );
}

function isListed(name: string, field: string): Difference | undefined {
  return differences.find(
    (known) => known.exchange === name && field.replace(/\.\d+(?=\.|$)/g, '.*') === known.field,
  );
}

describe('QMP beside qemu-storage-daemon', { skip, timeout: 120_000 }, () => {
  let folder: string;
  let ours: Side;
  let theirs: Side;
  const used = new Set<Difference>();

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'vduse-comparison-'));
    ours = new Side(join(folder, 'ours'), [process.execPath, ourProgram, '--log-level', 'error']);
    theirs = new Side(join(folder, 'theirs'), ['qemu-storage-daemon']);
    await Promise.all([ours.open(), theirs.open()]);
  });

  after(async () => {
    await Promise.all([ours.close(), theirs.close()]);
    rmSync(folder, { recursive: true });
  });

  async function compare(exchange: Exchange): Promise<void> {
    const [ourAnswer, theirAnswer] = [await ours.exchange(exchange), await theirs.exchange(exchange)];
    const unlisted = differingFields(ourAnswer, theirAnswer).filter((field) => {
      const known = isListed(exchange.name, field);
      if (known !== undefined) {
        used.add(known);
      }
      return known === undefined;
    });
    assert.deepEqual(unlisted, [], JSON.stringify({ ours: ourAnswer, theirs: theirAnswer }, undefined, 1));
  }

  for (const [kind, exchanges] of Object.entries({ 'read-only': readOnly, changing })) {
    test(`there are 25 ${kind} exchanges or more`, () => {
      assert.ok(exchanges.length >= 25);
      assert.equal(
        new Set(exchanges.map(({ command, arguments: args }) => command + JSON.stringify(args))).size >= 25,
        true,
      );
    });
    for (const exchange of exchanges) {
      test(`${kind}: ${exchange.name}`, () => compare(exchange));
    }
  }

  for (const exchange of jobs) {
    test(`jobs: ${exchange.name}`, async () => {
      await compare(exchange);
      if (exchange.awaits !== undefined) {
        await Promise.all([ours.awaitJob(exchange.awaits), theirs.awaitJob(exchange.awaits)]);
      }
    });
  }

  test('jobs: their events tell the same stories', () => {
    assert.deepEqual(Object.fromEntries(ours.jobStories), Object.fromEntries(theirs.jobStories));
  });

  test('every listed difference is one, and docs/qmp.md gives its reason', () => {
    const page = readFileSync(join(root, 'docs/qmp.md'), 'utf8').replace(/\s+/g, ' ');
    for (const difference of differences) {
      assert.ok(used.has(difference), `no longer different: ${JSON.stringify(difference)}`);
      assert.ok(page.includes(difference.reason), `not in docs/qmp.md: ${difference.reason}`);
    }
  });
});
