/** Copies a node to another one, once: `vduse convert`. Nobody writes either meanwhile. */
import { VduseError } from '../base/errors.js';
import { Copier } from '../block/copier.js';
import { DirtyBitmap } from '../block/dirty-bitmap.js';
import type { BlockNode } from '../block/node.js';

export interface ConvertOptions {
  readonly source: BlockNode;
  /** At least as long as the source. */
  readonly target: BlockNode;
  /** Bytes a second; 0, the default: no limit. */
  readonly speed?: number;
  /** Bytes that are done, holes included. */
  readonly onProgress?: (done: number) => void;
  /** Ends the copying; the target holds a part then. */
  readonly signal?: AbortSignal;
}

const granularity = 65_536;

/** Throws INVALID_ARGUMENT, what the nodes' requests end with, and the signal's reason. The target is flushed. */
export async function convertNode(options: ConvertOptions): Promise<void> {
  const { source, target, signal } = options;
  if (target.size < source.size) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `node '${target.nodeName}' has ${target.size} bytes, and '${source.nodeName}' has ${source.size}`,
      { hint: 'Make the target at least as long as the source.' },
    );
  }
  if (target.readOnly) {
    throw new VduseError('IMAGE_READ_ONLY', `block node '${target.nodeName}' is read-only`);
  }
  checkAlignment(source, target);
  signal?.throwIfAborted();
  const bitmap = new DirtyBitmap({ size: source.size, granularity });
  bitmap.mark(0, source.size);
  let done = 0;
  const copier = new Copier({
    source,
    target,
    bitmap,
    ownsTarget: true,
    onCopied: (bytes) => {
      done += bytes;
      options.onProgress?.(done);
    },
  });
  copier.speed = options.speed ?? 0;
  const stop = (): void => copier.stop();
  signal?.addEventListener('abort', stop);
  try {
    await copier.run();
    signal?.throwIfAborted();
    await copier.flush();
  } finally {
    signal?.removeEventListener('abort', stop);
    await copier.close();
  }
}

/** The last part must be one that both nodes take, and so must be what lies between the source's holes. */
function checkAlignment(source: BlockNode, target: BlockNode): void {
  const aligned = Math.max(source.limits.requestAlignment, target.limits.requestAlignment);
  const coarse = source.limits.requestAlignment === aligned ? source : target;
  if (source.size % aligned !== 0) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `node '${coarse.nodeName}' takes requests of ${aligned} bytes, of which the ${source.size} bytes of '${source.nodeName}' are no multiple`,
      { hint: `Open '${coarse.nodeName}' without cache.direct=on.` },
    );
  }
}
