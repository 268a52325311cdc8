/** query-qmp-schema, and every query's answer against it. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { openBlockNode } from '../../src/block/open.js';
import { createCommands } from '../../src/daemon/commands/commands.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import type { JsonObject } from '../../src/qmp/json-value.js';

/** Queries that need arguments. */
const queryArguments: Record<string, JsonObject> = {
  'qom-list': { path: '/' },
  'qom-get': { path: '/objects', property: 'type' },
};

describe('the schema of the daemon', () => {
  it('says what queries answer', async () => {
    const daemon = new StorageDaemon({ openBlockNode, exportCreators: {} });
    const commands = createCommands(daemon);
    await daemon.addNode({ driver: 'null-co', nodeName: 'n' });
    await daemon.addObject({ type: 'iothread', id: 'io' });
    await daemon.startNbdServer({ address: { type: 'unix', path: `\0vduse-schema-${process.pid}` } });
    await daemon.addExport({ type: 'nbd', id: 'e', nodeName: 'n' });
    let checked = 0;
    for (const name of commands.names) {
      const schema = commands.answerSchema(name);
      if (schema !== undefined) {
        const answer = await commands.execute(name, queryArguments[name] ?? {});
        const result = schema.safeParse(JSON.parse(JSON.stringify(answer)));
        assert.ok(result.success, `${name}: ${JSON.stringify(result.error?.issues)}`);
        checked += 1;
      }
    }
    assert.ok(checked >= 9);
    await daemon.close();
  });

  it('refers to types that are there, once each', () => {
    const daemon = new StorageDaemon({ openBlockNode, exportCreators: {} });
    const infos = createCommands(daemon).describe();
    const names = infos.map((info) => info['name']);
    assert.equal(new Set(names).size, names.length);
    const text = JSON.stringify(infos);
    for (const [, name] of text.matchAll(/"(?:arg-type|ret-type|element-type|type)":"([^"]+)"/g)) {
      assert.ok(names.includes(name), name);
    }
  });
});
