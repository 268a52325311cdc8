/** Commands about block nodes (QEMU: qapi/block-core.json). */
import { z } from 'zod';
import type { QmpCommandTable } from '../../qmp/command-table.js';
import { jsonScalars as s, struct } from '../../qmp/qapi.js';
import { nodeInfo } from '../node-info.js';
import { blockdevOptions, toBlockNodeOptions, toReopenOptions } from '../options/blockdev-options.js';
import type { StorageDaemon } from '../storage-daemon.js';
import { blockNodeInfo } from './node-schema.js';

export function addBlockCommands(commands: QmpCommandTable, daemon: StorageDaemon): void {
  commands.addAction('blockdev-add', blockdevOptions.json, async (options) => {
    await daemon.addNode(toBlockNodeOptions(options));
  });
  commands.addAction('blockdev-del', struct({ 'node-name': s.str }), (options) =>
    daemon.deleteNode(options['node-name']),
  );
  commands.addAction('blockdev-reopen', struct({ options: z.array(blockdevOptions.json) }), ({ options }) =>
    daemon.reopenNodes(options.map(toReopenOptions)),
  );
  // There are no backing files: the flat list and the full one are the same.
  commands.addQuery(
    'query-named-block-nodes',
    struct({ flat: s.bool.optional() }),
    () => daemon.nodes.map(nodeInfo),
    z.array(blockNodeInfo),
  );
  commands.addAction(
    'block_resize',
    struct({ device: s.str.optional(), 'node-name': s.str.optional(), size: s.int }),
    (options) =>
      daemon.resizeNode({ device: options.device, nodeName: options['node-name'], size: options.size }),
  );
}
