/** Opens block nodes by their options, QEMU's block drivers by QEMU's names. */
import { VduseError } from '../base/errors.js';
import { openFileNode, openMemoryNode } from './drivers/file-node.js';
import { openNullNode } from './drivers/null-node.js';
import { openRawNode } from './drivers/raw-node.js';
import { openThrottleNode } from './filters/throttle-node.js';
import type { BlockNode, BlockNodeOptions, ChildOpener } from './node.js';

/** Without a graph there are no nodes to refer to: a child is opened with its parent and closed with it. */
const ownChildren: ChildOpener = {
  async open(role, child) {
    if (typeof child === 'string') {
      throw new VduseError('NOT_FOUND', `${role}=${child}: there is no node of this name to refer to`, {
        hint: `Write the options of the child itself: ${role}.driver=file,${role}.filename=...`,
      });
    }
    return openBlockNode({ nodeName: role, ...child });
  },
};

/** Throws what the block driver throws (see its file); nothing stays open then. */
export async function openBlockNode(
  options: BlockNodeOptions,
  children: ChildOpener = ownChildren,
): Promise<BlockNode> {
  switch (options.driver) {
    case 'file':
    case 'host_device':
      return openFileNode(options);
    case 'memory':
      return openMemoryNode(options);
    case 'null-co':
      return openNullNode(options);
    case 'raw':
      return openRawNode(options, children);
    case 'throttle':
      return openThrottleNode(options, children);
  }
}
