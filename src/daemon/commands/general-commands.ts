/** Commands about the daemon itself (QEMU: qapi/control.json). */
import { z } from 'zod';
import type { QmpCommandTable } from '../../qmp/command-table.js';
import { choice, jsonScalars as s, struct, variants } from '../../qmp/qapi.js';
import type { StorageDaemon } from '../storage-daemon.js';
import { qmpVersion } from '../version.js';

const noArguments = struct({});

const versionInfo = struct({
  qemu: struct({ major: s.int, minor: s.int, micro: s.int }),
  package: s.str,
});

const members = z.array(struct({ name: s.str }));

/** SchemaInfo. */
const schemaInfo = variants('meta-type', [
  struct({ 'meta-type': z.literal('builtin'), name: s.str, 'json-type': s.str }),
  struct({ 'meta-type': z.literal('enum'), name: s.str, members, values: z.array(s.str) }),
  struct({ 'meta-type': z.literal('array'), name: s.str, 'element-type': s.str }),
  struct({
    'meta-type': z.literal('object'),
    name: s.str,
    members: z.array(struct({ name: s.str, type: s.str, default: z.unknown().optional() })),
    tag: s.str.optional(),
    variants: z.array(struct({ case: s.str, type: s.str })).optional(),
  }),
  struct({ 'meta-type': z.literal('alternate'), name: s.str, members: z.array(struct({ type: s.str })) }),
  struct({ 'meta-type': z.literal('command'), name: s.str, 'arg-type': s.str, 'ret-type': s.str }),
  struct({ 'meta-type': z.literal('event'), name: s.str, 'arg-type': s.str }),
]);

export function addGeneralCommands(commands: QmpCommandTable, daemon: StorageDaemon): void {
  // The session itself answers qmp_capabilities; being here it is listed.
  const capabilities = struct({ enable: z.array(choice('oob')).optional() });
  commands.addAction('qmp_capabilities', capabilities, () => undefined);
  commands.addQuery(
    'query-version',
    noArguments,
    () => ({ qemu: { ...qmpVersion.qemu }, package: qmpVersion.package }),
    versionInfo,
  );
  commands.addQuery(
    'query-commands',
    noArguments,
    () => commands.names.map((name) => ({ name })),
    z.array(struct({ name: s.str })),
  );
  commands.addQuery('query-qmp-schema', noArguments, () => commands.describe(), z.array(schemaInfo));
  commands.addAction('quit', noArguments, () => daemon.requestShutdown('a QMP client sent quit'));
}
