/** The life of `vduse mirror`: a target, a job of the daemon's, and whatever uses the node on one of the two. */
import { existsSync } from 'node:fs';
import { unlink } from 'node:fs/promises';
import { VduseError } from '../../base/errors.js';
import type { JsonObject } from '../../qmp/json-value.js';
import type { MirrorFlags } from '../commands/mirror.js';
import { blockdevArgument } from './blockdev-argument.js';
import type { CommandContext } from './command.js';
import { connectToMonitor } from './connect.js';
import { createImage } from './create-image.js';
import { type JobView, type NodeView, queryExports, queryNodes } from './daemon-view.js';
import { exitStatusOf, InterruptedError, UsageError } from './errors.js';
import { Interruption } from './interruption.js';
import { JobFollower } from './job-follower.js';
import { reportErrors } from './json-errors.js';
import { Progress, printEvent } from './progress.js';
import { isRefusal, type QmpClient } from './qmp-client.js';
import { formatSeconds, formatSize } from './size.js';
import { withoutSecrets } from './without-secrets.js';

export interface MirrorRequest {
  readonly node: string;
  /** As it was given, for people. */
  readonly target: string;
  readonly flags: MirrorFlags;
}

/** QEMU: 31 bytes and the end of the text. */
const nodeNameBytesMax = 31;
/** A disk that was copied so often is written faster than it is copied. */
const endlessFactor = 3;

/** Throws UsageError for arguments that can't be. Other errors are events with --json. */
export async function runMirror(given: MirrorRequest, context: CommandContext): Promise<void> {
  const { target, flags } = given;
  const request = { ...given, target: withoutSecrets(target) };
  if (flags.force === true && flags.create !== true) {
    throw new UsageError('--force is for --create: a target that is there is overwritten anyway');
  }
  const options = blockdevArgument(target);
  await reportErrors(context, flags.json === true, async () => {
    let follower: JobFollower | undefined;
    const client = await connectToMonitor(flags.monitor, {
      onEvent: () => follower?.wake(),
      onEnd: () => follower?.wake(),
    });
    const mirror = new Mirror({ request, options, client, context });
    try {
      await mirror.run((made) => {
        follower = made;
      });
    } finally {
      mirror.close();
      client.close();
    }
  });
}

/** `disk0-1` of `disk0`, `disk0-2` of that, as long as there is no such node. */
export function nextNodeName(name: string, taken: readonly string[]): string {
  const [, stem, number] = /^(.*?)(?:-(\d{1,4}))?$/s.exec(name.replace(/^[^A-Za-z]+/, 'node'))!;
  for (let n = Number(number ?? 0) + 1; ; n++) {
    const candidate = `${stem.slice(0, nodeNameBytesMax - `-${n}`.length)}-${n}`;
    if (!taken.includes(candidate)) {
      return candidate;
    }
  }
}

interface MirrorParts {
  readonly request: MirrorRequest;
  readonly options: JsonObject;
  readonly client: QmpClient;
  readonly context: CommandContext;
}

class Mirror {
  readonly #request: MirrorRequest;
  readonly #options: JsonObject;
  readonly #client: QmpClient;
  readonly #context: CommandContext;
  readonly #interruption: Interruption;
  readonly #startedMs = performance.now();
  /** A node that was not there before, and a file. */
  #addedNode: string | undefined;
  #madeFile: string | undefined;
  #isWarned = false;

  constructor(parts: MirrorParts) {
    this.#request = parts.request;
    this.#options = parts.options;
    this.#client = parts.client;
    this.#context = parts.context;
    this.#interruption = new Interruption((signal, count) => this.#onSignal(signal, count));
  }

  /** A job ends when its requests do, which storage that hangs may keep up: a second signal does not wait for that. */
  #onSignal(signal: NodeJS.Signals, count: number): void {
    const { monitor, json } = this.#request.flags;
    const { terminal } = this.#context;
    if (count > 1) {
      terminal.say(`Not waiting for the end of job '${this.#jobId}': vduse qmp ${monitor} query-jobs`);
      process.exit(exitStatusOf(new InterruptedError(signal, '')));
    }
    if (json !== true) {
      terminal.say('Cancelling the job.');
    }
  }

  async run(onFollower: (follower: JobFollower) => void): Promise<void> {
    const source = await this.#source();
    let target: NodeView;
    try {
      target = await this.#target(source);
      this.#interruption.signal.throwIfAborted();
      await this.#start(source, target);
    } catch (error) {
      await this.#cleanUp();
      throw error;
    }
    const job = await this.#follow(source, target, onFollower);
    await this.#client.execute('job-dismiss', { id: job.id }).catch(() => undefined);
    if (job.error !== undefined) {
      await this.#cleanUp();
      throw this.#failure(job.error, source);
    }
    await this.#reportDone(source, target, job);
  }

  close(): void {
    this.#interruption.close();
  }

  async #source(): Promise<NodeView> {
    const { node } = this.#request;
    const nodes = await queryNodes(this.#client);
    const source = nodes.find(({ nodeName }) => nodeName === node);
    if (source === undefined) {
      throw new VduseError('NOT_FOUND', `there is no node '${node}' at ${this.#request.flags.monitor}`, {
        hint:
          nodes.length === 0
            ? 'It has no nodes.'
            : `It has: ${nodes.map(({ nodeName }) => nodeName).join(', ')}.`,
      });
    }
    return source;
  }

  /** The node of the target, which is made where there is none of that name. */
  async #target(source: NodeView): Promise<NodeView> {
    const { target: name, flags } = this.#request;
    const nodes = await queryNodes(this.#client);
    const present = nodes.find(({ nodeName }) => nodeName === name);
    if (present !== undefined && flags.create !== true) {
      return this.#checked(source, present);
    }
    if (flags.create === true) {
      await this.#createFile(source.size);
    } else if (this.#isMissing()) {
      throw new VduseError('NOT_FOUND', `there is no node '${name}', and no such file`, {
        hint: 'Check the name, or let the file be made: --create.',
      });
    }
    const taken = nodes.map(({ nodeName }) => nodeName);
    const nodeName = String(this.#options['node-name'] ?? nextNodeName(source.nodeName, taken));
    await this.#client.execute('blockdev-add', { ...this.#options, 'node-name': nodeName }).catch((error) => {
      if (!isRefusal(error)) {
        this.#keepFile();
      }
      throw error;
    });
    this.#addedNode = nodeName;
    const added = (await queryNodes(this.#client)).find((node) => node.nodeName === nodeName);
    return this.#checked(source, added!);
  }

  #isMissing(): boolean {
    const { driver, filename } = this.#options;
    return driver === 'file' && !existsSync(String(filename));
  }

  async #createFile(size: number): Promise<void> {
    const { driver, filename } = this.#options;
    const { target, flags } = this.#request;
    if (driver !== 'file') {
      throw new UsageError(
        `--create makes image files, and '${target}' is none`,
        'Make the target by the means of its storage, and leave out --create.',
      );
    }
    const path = String(filename);
    const isNew = !existsSync(path);
    const request = { path, size, force: flags.force === true, preallocate: false };
    await createImage(request, this.#context);
    this.#madeFile = isNew ? path : undefined;
  }

  #checked(source: NodeView, target: NodeView): NodeView {
    if (source.size !== target.size) {
      throw new VduseError(
        'INVALID_ARGUMENT',
        `'${this.#request.target}' has ${target.size} bytes, and node '${source.nodeName}' has ${source.size}: a disk in use keeps its size`,
        { hint: 'Make a target of the same size: --create does that for a file.' },
      );
    }
    return target;
  }

  get #jobId(): string {
    const { flags, node } = this.#request;
    return flags.job ?? `mirror-${node.replace(/[^\w.-]/g, '')}`;
  }

  async #start(source: NodeView, target: NodeView): Promise<void> {
    const { sync, speed = 0, copyMode } = this.#request.flags;
    await this.#client.execute('blockdev-mirror', {
      'job-id': this.#jobId,
      device: source.nodeName,
      target: target.nodeName,
      sync,
      speed,
      'copy-mode': copyMode,
      // What became of it is asked at the end.
      'auto-dismiss': false,
    });
  }

  async #follow(
    source: NodeView,
    target: NodeView,
    onFollower: (follower: JobFollower) => void,
  ): Promise<JobView> {
    const { flags } = this.#request;
    const id = this.#jobId;
    const json = flags.json === true;
    if (json) {
      const nodes = { node: source.nodeName, target: target.nodeName };
      printEvent(this.#context, 'started', { job: id, ...nodes, filename: target.filename });
    }
    const progress = new Progress(this.#context, { label: 'mirroring', json, total: source.size });
    const follower = new JobFollower(this.#client, {
      id,
      signal: this.#interruption.signal,
      end: flags.switch
        ? { command: 'job-complete', arguments: { id } }
        : { command: 'block-job-cancel', arguments: { device: id } },
      onProgress: ({ current, total }) => {
        progress.update(current, total);
        this.#warnIfEndless(total, source.size);
      },
      onReady: () => json && printEvent(this.#context, 'ready', { job: id }),
    });
    onFollower(follower);
    try {
      return await follower.follow();
    } catch (error) {
      // The job may go on, and may even have ended well: nothing that it uses is taken away.
      throw new VduseError('ABORTED', `what becomes of job '${id}' can't be seen any more`, {
        cause: error,
        hint: `See what is there: vduse qmp ${flags.monitor} query-jobs, and query-block-exports`,
      });
    } finally {
      progress.close();
    }
  }

  #warnIfEndless(total: number, size: number): void {
    if (total > size * endlessFactor && !this.#isWarned && this.#request.flags.json !== true) {
      this.#isWarned = true;
      this.#context.terminal.say(
        'The disk is written faster than it is copied. --copy-mode write-blocking ends that, or a higher --speed.',
      );
    }
  }

  #failure(reason: string, source: NodeView): VduseError {
    const { received } = this.#interruption;
    const place = `node '${source.nodeName}' (${source.filename}) stays in use`;
    return received === undefined
      ? new VduseError('ABORTED', `job '${this.#jobId}' has failed: ${reason}; ${place}`)
      : new InterruptedError(received, `${received}: job '${this.#jobId}' is cancelled; ${place}`);
  }

  async #reportDone(source: NodeView, target: NodeView, job: JobView): Promise<void> {
    const { node, flags } = this.#request;
    const seconds = (performance.now() - this.#startedMs) / 1000;
    const exports = (await queryExports(this.#client))
      .filter(({ nodeName }) => nodeName === target.nodeName)
      .map(({ id }) => id);
    if (!flags.switch && this.#addedNode !== undefined) {
      // The copy is free for whoever wants it.
      await this.#client.execute('blockdev-del', { 'node-name': this.#addedNode });
    }
    if (flags.json === true) {
      printEvent(this.#context, 'done', {
        switched: flags.switch,
        node,
        target: target.nodeName,
        filename: target.filename,
        exports,
        bytes: job.current,
        seconds,
      });
      return;
    }
    const { print, terminal } = this.#context;
    const copied = `${formatSize(job.current)} in ${formatSeconds(seconds)}`;
    if (!flags.switch) {
      print(`${this.#request.target} is a copy of node '${node}', which stays in use; ${copied}\n`);
      return;
    }
    const place = `node '${target.nodeName}' (${target.filename})`;
    const users = exports.length === 0 ? '' : ` (${plural(exports.length, 'export')}: ${exports.join(', ')})`;
    print(`what used node '${node}'${users} now uses ${place}; ${copied}\n`);
    terminal.say(
      `node '${node}' (${source.filename}) is free: vduse qmp ${flags.monitor} blockdev-del node-name=${node}`,
    );
  }

  /** Takes back what was added for a job that has come to nothing, unless the daemon uses it, or may do so. */
  async #cleanUp(): Promise<void> {
    if (this.#addedNode !== undefined) {
      await this.#client
        .execute('blockdev-del', { 'node-name': this.#addedNode })
        .catch(() => this.#keepFile());
    }
    if (this.#madeFile !== undefined) {
      await unlink(this.#madeFile).catch(() => undefined);
    }
  }

  #keepFile(): void {
    if (this.#madeFile !== undefined) {
      const { monitor } = this.#request.flags;
      this.#context.terminal.say(
        `'${this.#madeFile}' stays, for the daemon may use it: vduse qmp ${monitor} query-named-block-nodes`,
      );
    }
    this.#madeFile = undefined;
  }
}

function plural(count: number, word: string): string {
  return `${count} ${word}${count === 1 ? '' : 's'}`;
}
