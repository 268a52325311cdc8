/** QEMU's throttle: a disk whose requests are held to the limits of a group. */
import { VduseError } from '../../base/errors.js';
import type { BlockNode, ChildOpener, ThrottleNodeOptions } from '../node.js';
import { FilterNode } from './filter-node.js';

/** Throws NOT_FOUND for a group that does not exist, and what opening the child throws. */
export async function openThrottleNode(
  options: ThrottleNodeOptions,
  children: ChildOpener,
): Promise<BlockNode> {
  const group = children.throttleGroup?.(options.throttleGroup);
  if (group === undefined) {
    throw new VduseError('NOT_FOUND', `Throttle group '${options.throttleGroup}' does not exist`, {
      hint: `create it before: --object throttle-group,id=${options.throttleGroup},limits.iops-total=1000`,
    });
  }
  const child = await children.open('file', options.file);
  return new FilterNode(options, child, {
    wrap: (engine) => ({ kind: 'throttle', group, child: engine }),
    reopen: (changed, opener) => openThrottleNode(changed as ThrottleNodeOptions, opener),
  });
}
