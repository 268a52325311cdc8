import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { openBlockNode } from '../../src/block/open.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { RawClient } from '../nbd/raw-client.js';

let directory: string;
let daemon: StorageDaemon;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'vduse-metrics-'));
  daemon = new StorageDaemon({ openBlockNode, exportCreators: {} });
});

afterEach(async () => {
  await daemon.close();
  rmSync(directory, { recursive: true });
});

interface Page {
  readonly status: number | undefined;
  readonly text: string;
  readonly type: string | undefined;
}

function get(
  where: { socketPath: string } | { port: number },
  path = '/metrics',
  method = 'GET',
): Promise<Page> {
  return new Promise((resolve, reject) => {
    const asked = request({ ...where, host: '127.0.0.1', path, method, agent: false }, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (chunk: string) => {
        text += chunk;
      });
      response.on('end', () =>
        resolve({ status: response.statusCode, text, type: response.headers['content-type'] }),
      );
    });
    asked.on('error', reject);
    asked.end();
  });
}

/** The samples of a page: `name{labels}` to value. Every line has the format's form. */
function samplesOf(text: string): Map<string, number> {
  const samples = new Map<string, number>();
  const types = new Set<string>();
  for (const line of text.trimEnd().split('\n')) {
    const type = /^# TYPE (\S+) (?:counter|gauge|histogram)$/.exec(line)?.[1];
    if (type !== undefined) {
      assert.ok(!types.has(type), type);
      types.add(type);
    } else if (!line.startsWith('# HELP ')) {
      const found = /^([a-z_]+(?:\{[^}]*\})?) (\S+)$/.exec(line);
      assert.ok(found !== null, line);
      assert.ok(!samples.has(found[1]), found[1]);
      samples.set(found[1], Number(found[2]));
    }
  }
  return samples;
}

describe('metrics', () => {
  it('tell what exports did, and how long it took', async () => {
    const socketPath = join(directory, 'metrics.sock');
    const nbd = { type: 'unix', path: join(directory, 'nbd.sock') } as const;
    await daemon.addNode({ driver: 'memory', nodeName: 'm', size: 1 << 20 });
    await daemon.startNbdServer({ address: nbd });
    await daemon.addExport({ type: 'nbd', id: 'e', nodeName: 'm' });
    await daemon.startMetrics({ type: 'unix', path: socketPath });
    assert.equal(statSync(socketPath).mode & 0o777, 0o600);
    const first = await get({ socketPath });
    assert.equal(first.status, 200);
    assert.match(first.type ?? '', /^text\/plain; version=0\.0\.4/);
    const client = await RawClient.open(nbd, { name: 'm' });
    for (let n = 0; n < 3; n++) {
      await client.call({ type: 0, offset: 0, length: 4096 });
    }
    client.close();
    const samples = samplesOf((await get({ socketPath })).text);
    const sample = (name: string) => samples.get(name);
    assert.equal(sample('vduse_export_info{export="e",type="nbd",node="m",writable="false"}'), 1);
    assert.equal(sample('vduse_node_size_bytes{node="m",driver="memory"}'), 1 << 20);
    assert.equal(sample('vduse_export_reads_total{export="e"}'), 3);
    assert.equal(sample('vduse_export_read_bytes_total{export="e"}'), 3 * 4096);
    assert.equal(sample('vduse_export_in_flight{export="e"}'), 0);
    const duration = 'vduse_export_request_duration_seconds';
    assert.equal(sample(`${duration}_count{export="e",operation="read"}`), 3);
    assert.equal(sample(`${duration}_bucket{export="e",operation="read",le="+Inf"}`), 3);
    const buckets = [...samples]
      .filter(([name]) => name.startsWith(`${duration}_bucket{export="e",operation="read"`))
      .map(([, value]) => value);
    assert.ok(buckets.length > 10);
    assert.ok(buckets.every((value, n) => n === 0 || value >= buckets[n - 1]));
    assert.ok((sample('process_resident_memory_bytes') ?? 0) > 1e6);
  });

  it('are on the loopback interface, and nothing else is there', async () => {
    const { port } = await daemon.startMetrics({ type: 'inet', host: '127.0.0.1', port: 0 });
    assert.equal((await get({ port })).status, 200);
    assert.equal((await get({ port }, '/')).status, 404);
    assert.equal((await get({ port }, '/metrics', 'POST')).status, 405);
    await assert.rejects(daemon.startMetrics({ type: 'inet', host: '127.0.0.1', port: 0 }), {
      code: 'ALREADY_EXISTS',
    });
  });

  it('are what the documentation and the dashboard speak of', async () => {
    const { port } = await daemon.startMetrics({ type: 'inet', host: '127.0.0.1', port: 0 });
    const { text } = await get({ port });
    const names = [...text.matchAll(/^# TYPE (\S+)/gm)].map(([, name]) => name);
    const docs = join(import.meta.dirname, '../../../docs');
    const dashboard = readFileSync(join(docs, 'grafana-dashboard.json'), 'utf8');
    const used = dashboard.matchAll(/\b(?:vduse|process)_(?:[a-z]+_)+[a-z]+\b/g);
    for (const [name] of used) {
      assert.ok(names.includes(name.replace(/_bucket$/, '')), name);
    }
    const page = readFileSync(join(docs, 'metrics.md'), 'utf8');
    for (const name of names) {
      const short = name.replace('vduse_export', '');
      assert.ok(page.includes(`\`${name}\``) || page.includes(`\`${short}\``), name);
    }
  });
});
