/** Opens block nodes by their options, QEMU's block drivers by QEMU's names. */
import { VduseError } from '../base/errors.js';
import { silentLogger } from '../base/log.js';
import { openFileNode, openMemoryNode } from './drivers/file-node.js';
import { openHttpNode } from './drivers/http/http-node.js';
import { openNbdNode } from './drivers/nbd-client/nbd-node.js';
import { openNullNode } from './drivers/null-node.js';
import { openRawNode } from './drivers/raw-node.js';
import { openRbdNode } from './drivers/rbd/rbd-node.js';
import { openFaultNode } from './filters/fault-node.js';
import { openThrottleNode } from './filters/throttle-node.js';
import type { BlockNode, BlockNodeOptions, BlockServices, ChildOpener } from './node.js';

/** Without a daemon there are no secret objects, and nobody to tell. */
const noServices: BlockServices = {
  secret(id) {
    throw new VduseError('NOT_FOUND', `there is no secret '${id}'`);
  },
  logger: silentLogger,
};

/** Without a graph there are no nodes to refer to: a child is opened with its parent and closed with it. */
function ownChildren(services: BlockServices): ChildOpener {
  return {
    async open(role, child) {
      if (typeof child === 'string') {
        throw new VduseError('NOT_FOUND', `${role}=${child}: there is no node of this name to refer to`, {
          hint: `Write the options of the child itself: ${role}.driver=file,${role}.filename=...`,
        });
      }
      return openBlockNode({ nodeName: role, ...child }, undefined, services);
    },
  };
}

/** Throws what the block driver throws (see its file); nothing stays open then. */
export async function openBlockNode(
  options: BlockNodeOptions,
  children?: ChildOpener,
  services: BlockServices = noServices,
): Promise<BlockNode> {
  switch (options.driver) {
    case 'file':
    case 'host_device':
      return openFileNode(options);
    case 'memory':
      return openMemoryNode(options);
    case 'null-co':
      return openNullNode(options);
    case 'nbd':
      return openNbdNode(options, services);
    case 'raw':
      return openRawNode(options, children ?? ownChildren(services));
    case 'throttle':
      return openThrottleNode(options, children ?? ownChildren(services));
    case 'fault':
      return openFaultNode(options, children ?? ownChildren(services));
    case 'http':
    case 'https':
      return openHttpNode(options, services);
    case 'rbd':
      return openRbdNode(options, services);
  }
}
