/** What waits for a copy, and what does not. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CopyChannel } from '../../src/block/copy-channel.js';
import { DirtyBitmap } from '../../src/block/dirty-bitmap.js';
import { BlockOp } from '../../src/block/engine.js';
import { BackupEngine } from '../../src/block/filters/backup-engine.js';
import { RequestTable } from '../../src/block/request-table.js';
import { closeFd, createEventFd } from '../../src/native/fd.js';
import { Reactor } from '../../src/reactor/reactor.js';

test('what changes the disk waits for its copy; what only asks does not, and asks for none', () => {
  const reactor = new Reactor({});
  const table = new RequestTable(8, 1);
  const bitmap = new DirtyBitmap({ size: 1 << 20, granularity: 65_536 });
  bitmap.mark(0, bitmap.size);
  const channel = new CopyChannel({ askFd: createEventFd(), doneFd: createEventFd() });
  const submitted: number[] = [];
  const child = {
    submit: (slot: number) => submitted.push(slot),
    cancel: () => undefined,
    abandon: () => undefined,
    close: () => undefined,
  };
  const sink = { onBlockComplete: () => undefined };
  const spec = {
    kind: 'backup',
    bitmap,
    channel: channel.spec,
    child: { kind: 'null', readZeroes: true },
  } as const;
  const engine = new BackupEngine(spec, { table, sink, reactor }, child);
  try {
    const submit = (op: BlockOp): string => {
      const slot = table.take();
      table.op[slot] = op;
      table.offset[slot] = 65_536;
      table.length[slot] = 4096;
      submitted.length = 0;
      engine.submit(slot);
      return `${submitted.length === 1 ? 'begun' : 'waits'}, ${channel.take().length} asked`;
    };
    for (const op of [BlockOp.READ, BlockOp.FLUSH, BlockOp.STATUS]) {
      assert.equal(submit(op), 'begun, 0 asked', `operation ${op}`);
    }
    for (const op of [BlockOp.WRITE, BlockOp.WRITE_ZEROES, BlockOp.DISCARD]) {
      assert.equal(submit(op), 'waits, 1 asked', `operation ${op}`);
    }
  } finally {
    engine.cancel();
    engine.close();
    reactor.close();
    table.close();
    closeFd(channel.spec.askFd);
    closeFd(channel.spec.doneFd);
  }
});
