/** A client in the style of Python's qemu.qmp on our daemon: it negotiates, matches answers by id, and gets events. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { openBlockNode } from '../../src/block/open.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { runProgram } from './programs.js';

const isInstalled = spawnSync('python3', ['--version']).status === 0;
const skip = isInstalled || process.env['CI'] === 'true' ? false : 'python3 is not installed';

const client = `
import asyncio, itertools, json, sys

class ExecuteError(Exception):
    pass

class QMPClient:
    async def connect(self, path):
        self.reader, self.writer = await asyncio.open_unix_connection(path, limit=1 << 24)
        greeting = json.loads(await self.reader.readline())
        assert set(greeting) == {'QMP'} and 'version' in greeting['QMP'], greeting
        self.ids, self.pending, self.events = itertools.count(), {}, asyncio.Queue()
        self.task = asyncio.create_task(self._read())
        await self.execute('qmp_capabilities', {'enable': []})

    async def _read(self):
        while line := await self.reader.readline():
            message = json.loads(line)
            if 'event' in message:
                await self.events.put(message)
            else:
                self.pending.pop(message['id']).set_result(message)

    async def execute(self, command, arguments=None):
        name = f'__qmp#{next(self.ids):05d}'
        self.pending[name] = answer = asyncio.get_running_loop().create_future()
        request = {'execute': command, 'id': name}
        if arguments is not None:
            request['arguments'] = arguments
        self.writer.write(json.dumps(request).encode())
        await self.writer.drain()
        message = await answer
        if 'error' in message:
            raise ExecuteError(message['error']['class'], message['error']['desc'])
        return message['return']

async def main():
    qmp = QMPClient()
    await qmp.connect(sys.argv[1])
    names = {c['name'] for c in await qmp.execute('query-commands')}
    assert 'query-qmp-schema' in names
    schema = await qmp.execute('query-qmp-schema')
    assert {e['name'] for e in schema if e['meta-type'] == 'command'} == names
    await qmp.execute('blockdev-add', {'driver': 'null-co', 'node-name': 'n'})
    nodes, exports = await asyncio.gather(qmp.execute('query-named-block-nodes'), qmp.execute('query-block-exports'))
    assert nodes[0]['node-name'] == 'n' and exports == []
    await qmp.execute('nbd-server-start', {'addr': {'type': 'unix', 'data': {'path': sys.argv[2]}}})
    await qmp.execute('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'n'})
    await qmp.execute('block-export-del', {'id': 'e'})
    event = await asyncio.wait_for(qmp.events.get(), 10)
    assert event['event'] == 'BLOCK_EXPORT_DELETED' and event['data'] == {'id': 'e'}, event
    assert set(event['timestamp']) == {'seconds', 'microseconds'}
    try:
        await qmp.execute('nope')
        raise AssertionError('it was executed')
    except ExecuteError as error:
        assert error.args[0] == 'CommandNotFound', error
    print('all done')

asyncio.run(main())
`;

describe('a client in Python', { skip, timeout: 60_000 }, () => {
  let folder: string;
  let daemon: StorageDaemon;

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'vduse-python-'));
    writeFileSync(join(folder, 'client.py'), client);
    daemon = new StorageDaemon({ openBlockNode, exportCreators: {} });
    await daemon.startMonitor(join(folder, 'qmp.sock'));
  });

  after(async () => {
    await daemon.close();
    rmSync(folder, { recursive: true });
  });

  test('does its work unchanged', async () => {
    const paths = ['client.py', 'qmp.sock', 'nbd.sock'].map((name) => join(folder, name));
    assert.match(await runProgram('python3', paths), /all done/);
  });
});
