/** Makes images where block drivers can (QEMU's blockdev-create). */
import { createFile, type FileImageOptions } from './drivers/file-create.js';
import { createRbdImage, type RbdImageOptions } from './drivers/rbd/rbd-create.js';
import type { BlockServices } from './node.js';

export type ImageOptions = FileImageOptions | RbdImageOptions;

export interface CreateContext {
  readonly services: BlockServices;
  /** Ends the work, which then throws the signal's reason. */
  readonly signal: AbortSignal;
  /** Told of what is done of all that is to be done, bytes. May hold the work up for a while. */
  readonly onProgress: (done: number, total: number) => Promise<void>;
}

/** Makes an image. When it throws, nothing is there that was not there before. */
export function createImage(options: ImageOptions, context: CreateContext): Promise<void> {
  switch (options.driver) {
    case 'file':
      return createFile(options, context);
    case 'rbd':
      return createRbdImage(options, context);
  }
}
