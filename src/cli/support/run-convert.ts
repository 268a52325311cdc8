/** The life of `vduse convert`: two nodes, a copy, and what is left when it ends early. */
import { existsSync, rmSync } from 'node:fs';
import { unlink } from 'node:fs/promises';
import { VduseError } from '../../base/errors.js';
import type { BlockNode, BlockNodeOptions } from '../../block/node.js';
import { compareNodes } from '../../daemon/compare.js';
import { convertNode } from '../../daemon/convert.js';
import type { ConvertFlags } from '../commands/convert.js';
import type { CommandContext } from './command.js';
import { createImage } from './create-image.js';
import { exitStatusOf, InterruptedError, UsageError } from './errors.js';
import { Interruption } from './interruption.js';
import { reportErrors } from './json-errors.js';
import { terminalLogger } from './logger.js';
import { isSameImage, NodeSession, nodeArgument } from './node-session.js';
import { Progress, printEvent } from './progress.js';
import { formatSeconds, formatSize } from './size.js';
import { withoutSecrets } from './without-secrets.js';

export interface ConvertRequest {
  /** As they were given, for people. */
  readonly source: string;
  readonly target: string;
  readonly flags: ConvertFlags;
}

/** After a signal it is told what is waited for, where that takes longer. */
const hintMs = 1000;

/** Throws UsageError for arguments that can't be. Other errors are events with --json. */
export async function runConvert(request: ConvertRequest, context: CommandContext): Promise<void> {
  const { flags } = request;
  const source = withoutSecrets(request.source);
  const target = withoutSecrets(request.target);
  if (flags.force === true && flags.create !== true) {
    throw new UsageError('--force is for --create: a target that is there is overwritten anyway');
  }
  const options = {
    source: nodeArgument(request.source, 'source'),
    target: nodeArgument(request.target, 'target'),
  };
  // What is made anew has lost what it had, also where the source is a part of it.
  if (isSameImage(options.source, options.target, { count: flags.create === true })) {
    throw new UsageError(`'${source}' and '${target}' are the same image`, 'Choose another target.');
  }
  if (flags.create === true && options.target.driver !== 'file') {
    throw new UsageError(
      `--create makes image files, and '${target}' is none`,
      'Make the target by the means of its storage, and leave out --create.',
    );
  }
  await reportErrors(context, flags.json === true, () =>
    new Conversion({ source, target, flags }, options, context).run(),
  );
}

class Conversion {
  readonly #request: ConvertRequest;
  readonly #options: { readonly source: BlockNodeOptions; readonly target: BlockNodeOptions };
  readonly #context: CommandContext;
  readonly #session: NodeSession;
  readonly #interruption = new Interruption((signal, count) => this.#onSignal(signal, count));
  #hint: NodeJS.Timeout | undefined;
  /** A file that was not there before. */
  #made: string | undefined;
  #written = false;

  constructor(
    request: ConvertRequest,
    options: { readonly source: BlockNodeOptions; readonly target: BlockNodeOptions },
    context: CommandContext,
  ) {
    this.#request = request;
    this.#options = options;
    this.#context = context;
    this.#session = new NodeSession(
      terminalLogger(context.terminal, { logLevel: 'warn', logFormat: 'text' }),
    );
  }

  async run(): Promise<void> {
    try {
      await this.#convert();
    } catch (error) {
      const left = await this.#cleanUp();
      throw error instanceof InterruptedError
        ? new InterruptedError(error.signal, `${error.signal}: the copy is not finished; ${left}`)
        : error;
    } finally {
      await this.#session.close();
      clearTimeout(this.#hint);
      this.#interruption.close();
    }
  }

  /** What is under way is waited for, which storage that hangs may keep up for ever: not behind a second signal. */
  #onSignal(signal: NodeJS.Signals, count: number): void {
    if (count > 1) {
      if (this.#made !== undefined) {
        rmSync(this.#made, { force: true });
      }
      process.exit(exitStatusOf(new InterruptedError(signal, '')));
    }
    if (this.#request.flags.json !== true) {
      const text = 'Waiting for requests that are under way. Once more to end at once.';
      this.#hint = setTimeout(() => this.#context.terminal.say(text), hintMs);
    }
  }

  async #convert(): Promise<void> {
    const { flags } = this.#request;
    const started = performance.now();
    await this.#session.addObjects(flags.object ?? []);
    const source = await this.#session.open({ ...this.#options.source, readOnly: true });
    const target = await this.#openTarget(source);
    this.#written = true;
    await this.#copy(source, target);
    const seconds = (performance.now() - started) / 1000;
    if (flags.verify === true) {
      await this.#verify(source, target);
    }
    this.#reportDone(source, target, seconds);
  }

  async #openTarget(source: BlockNode): Promise<BlockNode> {
    const { target: name, source: sourceName, flags } = this.#request;
    const { target: options } = this.#options;
    if (flags.create === true && options.driver === 'file') {
      const { filename } = options;
      const isNew = !existsSync(filename);
      const request = { size: source.size, force: flags.force === true, preallocate: false };
      await createImage({ path: filename, ...request }, this.#context);
      this.#made = isNew ? filename : undefined;
    }
    this.#interruption.signal.throwIfAborted();
    const target = await this.#session.openWritable(options).catch((error) => {
      if (error instanceof VduseError && error.code === 'NOT_FOUND' && options.driver === 'file') {
        throw new VduseError('NOT_FOUND', `there is no '${name}'`, {
          cause: error,
          hint: 'Check the path, or let it be made: --create.',
        });
      }
      throw error;
    });
    if (target.size < source.size) {
      throw new VduseError(
        'INVALID_ARGUMENT',
        `'${name}' has ${formatSize(target.size)} (${target.size} bytes), too few for the ${formatSize(source.size)} (${source.size} bytes) of '${sourceName}'`,
        { hint: 'Make the target larger.' },
      );
    }
    return target;
  }

  async #copy(source: BlockNode, target: BlockNode): Promise<void> {
    const { json, speed = 0 } = this.#request.flags;
    const progress = this.#progress('copying', source.size, json === true);
    try {
      await convertNode({
        source,
        target,
        speed,
        signal: this.#interruption.signal,
        onProgress: (done) => progress.update(done),
      });
    } finally {
      progress.close();
    }
  }

  async #verify(source: BlockNode, target: BlockNode): Promise<void> {
    const progress = this.#progress('comparing', source.size, this.#request.flags.json === true);
    let difference: number | undefined;
    try {
      difference = await compareNodes({
        source,
        target,
        signal: this.#interruption.signal,
        onProgress: (done) => progress.update(done),
      });
    } finally {
      progress.close();
    }
    if (difference !== undefined) {
      throw new VduseError(
        'IMAGE_INVALID',
        `'${this.#request.target}' differs from '${this.#request.source}' at byte ${difference}, after it was copied`,
        { hint: 'Something else writes one of the two, or the storage of one is broken.' },
      );
    }
  }

  #progress(label: string, total: number, json: boolean): Progress {
    return new Progress(this.#context, { label, total, json });
  }

  #reportDone(source: BlockNode, target: BlockNode, seconds: number): void {
    const { source: from, target: to, flags } = this.#request;
    const bytes = source.size;
    const bytesPerSecond = Math.round(bytes / Math.max(seconds, 1e-3));
    const verified = flags.verify === true;
    if (flags.json === true) {
      const sizes = { bytes, targetSize: target.size };
      printEvent(this.#context, 'done', {
        source: from,
        target: to,
        ...sizes,
        seconds,
        bytesPerSecond,
        verified,
      });
      return;
    }
    const time = formatSeconds(seconds);
    const equal = verified ? ', compared and equal' : '';
    this.#context.print(
      `${from} -> ${to}: ${formatSize(bytes)} in ${time} (${formatSize(bytesPerSecond)}/s)${equal}\n`,
    );
    if (target.size > bytes) {
      this.#context.terminal.say(`${to} is larger: what it holds beyond ${formatSize(bytes)} is as it was`);
    }
  }

  /** Removes a file of its own that holds a part. Returns what is left, in words. */
  async #cleanUp(): Promise<string> {
    const { target } = this.#request;
    if (this.#made !== undefined) {
      await this.#session.close();
      await unlink(this.#made).catch(() => undefined);
      return `'${target}', which it had made, is removed again`;
    }
    return this.#written ? `'${target}' holds a part of it and is of no use` : `'${target}' is as it was`;
  }
}
