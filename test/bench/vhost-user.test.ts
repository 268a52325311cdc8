import assert from 'node:assert/strict';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { backings, type Cell, cellTitle, chooseCells, workloads } from '../../bench/support/block-cells.js';
import { ours, qemuNbd, qemuStorageDaemon } from '../../bench/support/block-servers.js';
import type { Sample } from '../../bench/support/compare.js';
import {
  type Comparison,
  comparisonJson,
  comparisonPlot,
  comparisonTables,
} from '../../bench/support/compare-report.js';
import { fioArguments, parseFio } from '../../bench/support/fio.js';
import { dropPageCache, makeImage, syncFile, warmPageCache } from '../../bench/support/images.js';
import {
  cpuSeconds,
  memoryUse,
  parseCpuSeconds,
  parseMemoryUse,
  runProgram,
  startServer,
  TimeLimitError,
} from '../../bench/support/processes.js';
import { replaceSection, tablesAsMarkdown, tablesAsText } from '../../bench/support/publish.js';
import { makeTempDir } from '../support/temp-dir.js';

const folder = makeTempDir();

const sample = (iops: number, cpuUsPerIo: number): Sample => ({
  iops,
  cpuUsPerIo,
  bytesPerSecond: iops * 4096,
  p50Us: 10,
  p99Us: 20,
  p999Us: 30,
});

const comparison: Comparison = {
  baseline: 'qemu-storage-daemon',
  environment: {
    date: '2026-01-01',
    processor: 'a processor',
    processors: 2,
    memoryGib: 8,
    kernel: '6.1',
    node: 'v20.0.0',
    programs: {},
  },
  repetitions: 2,
  seconds: 1,
  imageMib: 1024,
  results: [
    {
      cell: { backing: 'cached', workload: workloads[0] },
      samples: new Map([
        ['vduse', [sample(300, 2), sample(100, 2)]],
        ['qemu-storage-daemon', [sample(100, 4), sample(50, 4)]],
        ['qemu-nbd', [sample(30, 8), sample(10, 8)]],
        ['hanging', []],
      ]),
      failures: new Map([['hanging', 'no end within 12 s, 3 times']]),
    },
  ],
};

describe('cells', () => {
  test('all of them: each workload on each backing, titles apart', () => {
    const all = chooseCells({ quick: false });
    assert.equal(all.length, backings.length * workloads.length);
    assert.equal(new Set(all.map(cellTitle)).size, all.length);
  });

  test('the short form has some of each backing; --only finds titles whatever the case', () => {
    const quick = chooseCells({ quick: true });
    assert.deepEqual([...new Set(quick.map(({ backing }: Cell) => backing))], [...backings]);
    assert.ok(quick.length < chooseCells({ quick: false }).length / 2);
    const only = chooseCells({ quick: false, only: '^o_direct.*read, depth 1$' });
    assert.deepEqual(only.map(cellTitle), ['O_DIRECT file: 4k random read, depth 1']);
    assert.deepEqual(chooseCells({ quick: false, only: 'no such cell' }), []);
  });
});

describe('command lines', () => {
  const served = { backing: 'direct', images: ['/i'], sockets: ['/s'], queues: 4 } as const;

  test('both storage daemons get the same block node and export', () => {
    const [, , , , ...own] = ours().command(served);
    const [, , , ...peer] = qemuStorageDaemon().command(served);
    assert.deepEqual(
      own,
      peer.map((argument) => argument.replace(',iothread=io0', '')),
    );
    assert.ok(own.some((argument) => argument.includes('cache.direct=on')));
    assert.ok(own.some((argument) => argument.includes('num-queues=4')));
  });

  test("options of the export go behind ours, and another's program can be named", () => {
    assert.ok(ours('vduse x', 'poll-us=0').command(served).at(-1)?.endsWith(',poll-us=0'));
    assert.equal(qemuStorageDaemon('/other').command(served)[0], '/other');
    assert.ok(qemuNbd().command(served).includes('--cache=none'));
    assert.ok(
      qemuNbd()
        .command({ ...served, backing: 'null', images: [] })
        .includes('--image-opts'),
    );
  });

  test('queues can have threads of their own, where the server knows how', () => {
    const own = ours().command({ ...served, threads: 2 });
    assert.deepEqual(
      own.filter((argument) => argument.startsWith('iothread,')),
      ['iothread,id=io0', 'iothread,id=io1'],
    );
    assert.ok(own.at(-1)?.endsWith(',iothread.0=io0,iothread.1=io1'));
    assert.deepEqual(
      qemuStorageDaemon().command({ ...served, threads: 2 }),
      qemuStorageDaemon().command(served),
    );
  });

  test('queues are threads of one instance, devices are processes of their own', () => {
    const run = { workload: workloads[0], protocol: 'vhost-user', milliseconds: 300, sizeMib: 16 } as const;
    const one = fioArguments({ ...run, workload: { ...run.workload, queues: 4 }, sockets: ['/a'] });
    assert.ok(one.includes('--thread') && one.includes('--numjobs=4') && one.includes('--libblkio_path=/a'));
    const two = fioArguments({ ...run, sockets: ['/a', '/b'] });
    assert.ok(!two.includes('--thread') && two.includes('--libblkio_path=/b'));
    const nbd = fioArguments({ ...run, protocol: 'nbd', sockets: ['/n'] });
    assert.ok(nbd.includes('--uri=nbd+unix:///?socket=/n') && !nbd.includes('--ioengine=libblkio'));
  });
});

describe("fio's answer", () => {
  const answer = (error: number): string =>
    `note: a warning\n${JSON.stringify({
      jobs: [
        {
          error,
          mixed: {
            iops: 1000.5,
            bw_bytes: 4_098_048,
            total_ios: 1001,
            clat_ns: { percentile: { '50.000000': 1500, '99.000000': 2500, '99.900000': 9000 } },
          },
        },
      ],
    })}`;

  test('figures, in microseconds', () => {
    assert.deepEqual(parseFio(answer(0)), {
      iops: 1000.5,
      bytesPerSecond: 4_098_048,
      ios: 1001,
      p50Us: 1.5,
      p99Us: 2.5,
      p999Us: 9,
    });
  });

  test('a job that failed, and no answer at all, are errors', () => {
    assert.throws(() => parseFio(answer(5)), /failed with error 5/);
    assert.throws(() => parseFio('fio: engine not found'), /engine not found/);
    assert.throws(() => parseFio('{"jobs": []}'), /failed/);
  });
});

describe('processes', () => {
  test('processor time: user and system, of a process whose name has spaces and parentheses', () => {
    const stat = '7 (a ) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1 0 1 1 1';
    assert.equal(parseCpuSeconds(stat, 100), 2);
    const before = cpuSeconds(process.pid);
    assert.ok(before > 0);
  });

  test('memory: what is shared with clients is not its own', () => {
    const status =
      'Name:\tx\nVmRSS:\t    6000 kB\nRssAnon:\t    1000 kB\nRssFile:\t     500 kB\nRssShmem:\t    4500 kB\n';
    assert.deepEqual(parseMemoryUse(status), { residentKib: 6000, ownKib: 1500 });
    const own = memoryUse(process.pid);
    assert.ok(own.ownKib > 0 && own.ownKib <= own.residentKib);
  });

  test('a server that ends at once is told with what it said', async () => {
    const command = [process.execPath, '-e', 'console.error("no such image"); process.exit(3)'];
    await assert.rejects(startServer(command, ['/nonexistent/socket']), /status 3[\s\S]*no such image/);
    await assert.rejects(startServer(['/nonexistent/program'], ['/nonexistent/socket']), /ENOENT/);
  });

  test('a server is awaited and ended', async () => {
    const socket = join(folder, 's');
    const script = `require('node:net').createServer().listen(${JSON.stringify(socket)})`;
    const server = await startServer([process.execPath, '-e', script], [socket]);
    assert.ok(statSync(socket).isSocket());
    await server.stop();
    assert.throws(() => process.kill(server.pid, 0), /ESRCH/);
  });

  test('a program that is aborted ends with all that it has started', async () => {
    const path = join(folder, 'pid');
    const script = `setsid sleep 60 & echo $! > ${path}.new; mv ${path}.new ${path}; wait`;
    const abort = new AbortController();
    const running = runProgram(['sh', '-c', script], { signal: abort.signal });
    while (!existsSync(path)) await sleep(10);
    abort.abort(new Error('enough'));
    await assert.rejects(running, /enough/);
    const pid = Number(readFileSync(path, 'utf8'));
    const state = (): string => {
      try {
        return readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1][0];
      } catch {
        return 'gone';
      }
    };
    // Its parent is gone: who adopts it may be slow to collect it.
    while (!['gone', 'Z', 'X'].includes(state())) await sleep(10);
    await assert.rejects(runProgram(['true'], { signal: abort.signal }), /enough/);
  });

  test('a program that takes too long is ended; what a program leaves behind is not waited for', async () => {
    await assert.rejects(runProgram(['sleep', '60'], { limitMs: 50 }), TimeLimitError);
    assert.equal(await runProgram(['sh', '-c', 'echo done; sleep 60 &']), 'done\n');
  });

  test('a program that fails carries what it printed', async () => {
    assert.equal(await runProgram([process.execPath, '-e', 'console.log(1)']), '1\n');
    await assert.rejects(
      runProgram([process.execPath, '-e', 'console.error("why"); process.exit(2)']),
      /status 2:\nwhy/,
    );
  });
});

test('an image has the size asked for and differs block by block', async () => {
  const path = join(folder, 'i.img');
  await makeImage(path, 2);
  await warmPageCache(path);
  await syncFile(path);
  await dropPageCache(path);
  const content = readFileSync(path);
  assert.equal(content.length, 2 << 20);
  const blocks = Array.from({ length: 512 }, (_, n) => content.toString('latin1', n * 4096, n * 4096 + 32));
  assert.equal(new Set(blocks).size, 512);
});

describe('reports', () => {
  test('ratios are paired, to the baseline and of the first to all others', () => {
    const [cached, ratios] = comparisonTables(comparison);
    assert.equal(cached.title, 'page-cached file');
    const [, own, peer, nbd, hanging] = cached.rows;
    assert.deepEqual(hanging.slice(1), ['hanging', ...Array(6).fill('-'), 'no end within 12 s, 3 times']);
    assert.deepEqual(own.slice(0, 3), ['4k random read, depth 1', 'vduse', '200']);
    assert.equal(own.at(-1), '2.50 (2.00 to 3.00)');
    assert.deepEqual([peer[0], peer.at(-1)], ['', '-']);
    assert.equal(nbd.at(-1), '0.25 (0.20 to 0.30)');
    const [header, row] = ratios.rows;
    assert.equal(header.length, row.length);
    assert.deepEqual(row.slice(1), [
      '2.50 (2.00 to 3.00)',
      '10.00 (10.00 to 10.00)',
      '-',
      '0.50 (0.50 to 0.50)',
    ]);
  });

  test('every row of a table has as many cells as its header, in text and in markdown', () => {
    const tables = comparisonTables(comparison);
    for (const { rows } of tables) {
      for (const row of rows) assert.equal(row.length, rows[0].length);
    }
    assert.match(tablesAsText(tables), /page-cached file\n/);
    assert.match(tablesAsMarkdown(tables), /\*\*page-cached file\*\*\n\n\| {2}\| server \|/);
  });

  test('JSON has every sample', () => {
    const json = JSON.parse(JSON.stringify(comparisonJson(comparison))) as {
      cells: { servers: Record<string, { samples: Sample[]; iopsRatio?: { median: number } }> }[];
    };
    const { servers } = json.cells[0];
    assert.equal(servers['vduse'].samples.length, 2);
    assert.equal(servers['vduse'].iopsRatio?.median, 2.5);
    assert.equal(servers['qemu-storage-daemon'].iopsRatio, undefined);
  });

  test('the plot has a bar for each other server', () => {
    const svg = comparisonPlot(comparison);
    assert.ok(svg.includes('of qemu-storage-daemon') && svg.includes('of qemu-nbd'));
    assert.ok(svg.includes('>2.50<') && svg.includes('>10.00<'));
  });

  test('a generated section is replaced, again and again; a page without one is an error', () => {
    const page = 'a\n<!-- begin generated: x -->\nold\n<!-- end generated: x -->\nb\n';
    const once = replaceSection(page, { name: 'x', content: 'new\n' });
    assert.equal(once, 'a\n<!-- begin generated: x -->\n\nnew\n\n<!-- end generated: x -->\nb\n');
    assert.equal(replaceSection(once, { name: 'x', content: 'new' }), once);
    assert.throws(() => replaceSection(page, { name: 'y', content: '' }), /no section/);
  });
});
