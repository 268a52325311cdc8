/** Opens block nodes by their options, QEMU's block drivers by QEMU's names. */
import { openFileNode, openMemoryNode } from './drivers/file-node.js';
import { openNullNode } from './drivers/null-node.js';
import type { BlockNode, BlockNodeOptions } from './node.js';

/** Throws what the block driver throws (see its file); nothing stays open then. */
export async function openBlockNode(options: BlockNodeOptions): Promise<BlockNode> {
  switch (options.driver) {
    case 'file':
    case 'host_device':
      return openFileNode(options);
    case 'memory':
      return openMemoryNode(options);
    case 'null-co':
      return openNullNode(options);
  }
}
