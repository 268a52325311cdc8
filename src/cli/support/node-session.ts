/** Block nodes that a command opens for itself, in a daemon of its own, so that objects and references work as there. */
import { statSync } from 'node:fs';
import { resolve } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { VduseError } from '../../base/errors.js';
import type { Logger } from '../../base/log.js';
import type { BlockNode, BlockNodeOptions, UnnamedNodeOptions } from '../../block/node.js';
import { openBlockNode } from '../../block/open.js';
import { fileNodeOptions, namedNodeOptions } from '../../daemon/export-disk.js';
import { objectOptions, toUserObject } from '../../daemon/options/object-options.js';
import { StorageDaemon } from '../../daemon/storage-daemon.js';
import { parseOptionArgument } from '../storage-daemon/option-argument.js';
import { checked } from './command.js';
import { checkImageName, experimentNode } from './image-source.js';
import { withoutSecrets } from './without-secrets.js';

/** What a NODE argument stands for: a path, an experiment, or a filename as QEMU takes it. Throws UsageError. */
export function nodeArgument(text: string, nodeName: string): BlockNodeOptions {
  checkImageName(text);
  return (
    experimentNode(text, nodeName) ??
    checked(withoutSecrets(text), () => namedNodeOptions(text, nodeName)) ??
    fileNodeOptions(resolve(text), nodeName)
  );
}

/** Whether two nodes are one image. A part of it is not all of it, unless `parts` counts it as that. */
export function isSameImage(a: BlockNodeOptions, b: BlockNodeOptions, parts = { count: false }): boolean {
  const [one, other] = [fileOf(a), fileOf(b)];
  if (one !== undefined && other !== undefined) {
    return one.file === other.file && (parts.count || (!one.isPart && !other.isPart));
  }
  const plain = (options: BlockNodeOptions) => ({ ...options, nodeName: '', readOnly: false });
  const forgets = a.driver === 'memory' || a.driver === 'null-co';
  return !forgets && isDeepStrictEqual(plain(a), plain(b));
}

/** The identity of the file or disk that a node has its data from. */
function fileOf(options: UnnamedNodeOptions): { file: string; isPart: boolean } | undefined {
  if ('file' in options) {
    const below = typeof options.file === 'string' ? undefined : fileOf(options.file);
    const { offset = 0, size = undefined } = options.driver === 'raw' ? options : {};
    return below && { file: below.file, isPart: below.isPart || offset !== 0 || size !== undefined };
  }
  if (options.driver !== 'file' && options.driver !== 'host_device') {
    return undefined;
  }
  const stats = statSync(options.filename, { throwIfNoEntry: false });
  const file =
    stats === undefined
      ? options.filename
      : stats.isBlockDevice()
        ? `disk ${stats.rdev}`
        : `file ${stats.dev} ${stats.ino}`;
  return { file, isPart: false };
}

export class NodeSession {
  readonly #daemon: StorageDaemon;

  constructor(logger: Logger) {
    this.#daemon = new StorageDaemon({ openBlockNode, exportCreators: {}, logger });
  }

  /** As the daemon's --object has them. Throws UsageError. */
  async addObjects(texts: readonly string[]): Promise<void> {
    for (const text of texts) {
      const object = checked('--object', () =>
        toUserObject(parseOptionArgument(text, objectOptions, { impliedKey: 'qom-type' })),
      );
      await this.#daemon.addObject(object);
    }
  }

  /** Throws what the block driver throws. */
  open(options: BlockNodeOptions): Promise<BlockNode> {
    return this.#daemon.addNode(options);
  }

  /** For writing: what forbids that is said of the target. */
  async openWritable(options: BlockNodeOptions): Promise<BlockNode> {
    try {
      const node = await this.open(options);
      if (node.readOnly) {
        throw new VduseError('IMAGE_READ_ONLY', `'${node.filename ?? node.nodeName}' is read-only`);
      }
      return node;
    } catch (error) {
      if (error instanceof VduseError && ['PERMISSION_DENIED', 'IMAGE_READ_ONLY'].includes(error.code)) {
        throw new VduseError(error.code, error.message, {
          cause: error,
          hint: 'It is to be written: choose one that you may write to.',
        });
      }
      throw error;
    }
  }

  /** Closes all nodes. Never rejects. */
  close(): Promise<void> {
    return this.#daemon.close();
  }
}
