/** Random programs, cut at random places, and random bytes: against a model, and against the rules. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import fc from 'fast-check';
import { decodeExportQuery, decodeMetaContextQuery } from '../../src/nbd/option-decoder.js';
import { propertyRuns } from '../support/property.js';
import { type Random, scaled, testRandom } from '../support/random.js';
import { makeTempDir } from '../support/temp-dir.js';
import { MemoryExport } from './memory-export.js';
import { startServer, type TestServer } from './nbd-test-server.js';
import { encodeRequest, exportQuery, type RawClient, type RawRequest } from './raw-client.js';

const size = 256 << 10;
const READ = 0;
const WRITE = 1;
const WRITE_ZEROES = 6;

interface Step {
  readonly request: RawRequest & { readonly cookie: bigint };
  /** Of a read. */
  readonly expected: Uint8Array;
  readonly errno: number;
}

/** Requests whose results do not depend on the order in which they complete: each keeps to a stripe of its own. */
function randomSteps(random: Random, model: Uint8Array, stripes: number): Step[] {
  const stripe = size / stripes;
  return Array.from({ length: stripes }, (_, n): Step => {
    const cookie = BigInt(random.next()) << 32n || 1n;
    const offset = n * stripe + random.between(0, stripe - 1);
    const length = random.between(0, n * stripe + stripe - offset);
    const base = { cookie: cookie | BigInt(n), offset };
    const ok = { expected: new Uint8Array(0), errno: 0 };
    switch (random.between(0, 5)) {
      case 0:
      case 1: {
        const data = random.bytes(length);
        model.set(data, offset);
        return { ...ok, request: { ...base, type: WRITE, flags: random.between(0, 1), data } };
      }
      case 2:
        model.fill(0, offset, offset + length);
        return { ...ok, request: { ...base, type: WRITE_ZEROES, length, flags: random.pick([0, 1, 2, 3]) } };
      case 3: {
        const data = random.bytes(random.between(1, 3000));
        return {
          ...ok,
          request: { ...base, type: WRITE, offset: size - 1, data: Buffer.concat([data, data]) },
          errno: 28,
        };
      }
      default:
        return {
          ...ok,
          request: { ...base, type: READ, length },
          expected: model.slice(offset, offset + length),
        };
    }
  });
}

/** Sends the bytes in pieces, with pauses now and then, so that the server sees them as they were cut. */
async function sendCut(random: Random, client: RawClient, bytes: Buffer): Promise<void> {
  const pieces = random.between(1, 12);
  let at = 0;
  for (const length of random.cut(bytes.length, pieces)) {
    client.send(bytes.subarray(at, at + length));
    at += length;
    if (random.oneIn(2)) {
      await delay(random.between(0, 1));
    }
  }
}

async function runProgram(random: Random, server: TestServer, target: MemoryExport): Promise<void> {
  const client = await server.open({ structured: random.oneIn(2) });
  const model = target.bytes.slice();
  for (let round = 0; round < 4; round++) {
    const steps = randomSteps(random, model, random.pick([1, 4, 32]));
    const byCookie = new Map(steps.map((step) => [step.request.cookie, step]));
    for (const step of steps) {
      client.expect(step.request);
    }
    const sent = sendCut(random, client, Buffer.concat(steps.map((step) => encodeRequest(step.request))));
    for (let left = steps.length; left > 0; left--) {
      const outcome = await client.outcome();
      const step = byCookie.get(outcome.cookie);
      assert.ok(step !== undefined);
      assert.equal(outcome.errno, step.errno);
      assert.ok(outcome.data.equals(step.expected), `read at ${step.request.offset}`);
    }
    await sent;
    assert.ok(Buffer.from(target.bytes).equals(model), 'the disk holds what was written');
  }
  client.request({ type: 2 });
  await client.readToEnd();
  target.assertBalanced();
}

/** A valid session, spoiled at one place. */
function spoiledSession(random: Random): Buffer {
  const option = (type: number, data: Uint8Array): Buffer => {
    const header = Buffer.alloc(16);
    header.write('IHAVEOPT');
    header.writeUInt32BE(type, 8);
    header.writeUInt32BE(data.length, 12);
    return Buffer.concat([header, data]);
  };
  const session = Buffer.concat([
    Buffer.from([0, 0, 0, 3]),
    ...(random.oneIn(2) ? [option(8, Buffer.alloc(0))] : []),
    ...(random.oneIn(2) ? [option(6, exportQuery(''))] : []),
    option(7, exportQuery('', [3])),
    ...Array.from({ length: random.between(0, 6) }, () =>
      encodeRequest({
        type: random.between(0, 9),
        flags: random.oneIn(3) ? random.next() & 31 : 0,
        offset: random.between(0, size),
        data: random.bytes(random.between(0, 2000)),
      }),
    ),
  ]);
  for (let n = random.between(0, 3); n > 0; n--) {
    session[random.between(0, session.length - 1)] = random.next();
  }
  return random.oneIn(3) ? session.subarray(0, random.between(0, session.length)) : session;
}

describe('NBD streams', () => {
  const dir = makeTempDir();

  test('random programs, cut anywhere: what is written is read, and all is given back', async (t) => {
    const random = testRandom();
    t.diagnostic(`seed ${random.seed}`);
    for (let n = 0; n < scaled(12); n++) {
      const target = new MemoryExport({
        size,
        isAsync: random.oneIn(2),
        fua: random.oneIn(2),
        holeBytes: random.pick([0, 0, 512, 4096]),
      });
      const limits = random.oneIn(2) ? { requestsMax: 2, requestBytesMax: 8192 } : {};
      const server = await startServer(t, dir, { target, limits });
      await runProgram(random, server, target).catch((error: unknown) => {
        throw new Error(`run ${n} of seed ${random.seed}`, { cause: error });
      });
    }
  });

  test('spoiled sessions end or go on, and nothing else: another client is served', async (t) => {
    const random = testRandom();
    t.diagnostic(`seed ${random.seed}`);
    const target = new MemoryExport({ size, isAsync: random.oneIn(2) });
    const server = await startServer(t, dir, {
      target,
      limits: { stallTimeoutMs: 200, handshakeTimeoutMs: 200 },
    });
    const other = await server.open();
    for (let n = 0; n < scaled(150); n++) {
      const client = await server.connect();
      await sendCut(random, client, spoiledSession(random));
      if (random.oneIn(2)) {
        client.socket.end();
      } else {
        client.close();
      }
    }
    const outcome = await other.call({ type: READ, offset: 512, length: 512 });
    assert.equal(outcome.errno, 0, `seed ${random.seed}`);
    await server.server.close();
    assert.equal(server.server.clientCount(), 0);
    target.assertBalanced();
  });

  test('options of any bytes are decoded or refused', () => {
    const text = fc.string({ unit: 'binary', maxLength: 20 });
    const infos = fc.array(fc.nat(65535), { maxLength: 5 });
    fc.assert(
      fc.property(text, infos, fc.nat(), (name, wanted, cut) => {
        const data = exportQuery(name, wanted);
        const isValid = !name.includes('\0');
        assert.deepEqual(decodeExportQuery(data), isValid ? { name, infos: wanted } : undefined);
        assert.equal(decodeExportQuery(data.subarray(0, cut % data.length)), undefined);
      }),
      propertyRuns(200),
    );
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (data) => {
        decodeExportQuery(data);
        const query = decodeMetaContextQuery(data);
        assert.ok(query === undefined || query.queries.every((one) => one.includes(':')));
      }),
      propertyRuns(2000),
    );
  });
});
