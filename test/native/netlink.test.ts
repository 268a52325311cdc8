import assert from 'node:assert/strict';
import { closeSync, readdirSync, writeSync } from 'node:fs';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { SystemCallError, VduseError } from '../../src/base/errors.js';
import { bindLibc, errno } from '../../src/native/ffi.js';
import { GenericNetlinkSocket } from '../../src/native/netlink.js';
import {
  decodeGeneric,
  decodeMessages,
  decodeOutcome,
  encodeRequest,
  NetlinkAttributes,
  NLM_F,
  NLMSG,
} from '../../src/native/netlink-message.js';
import {
  decodeDevice,
  decodeManagementDevice,
  vdpaDeviceAdd,
  vdpaDeviceDelete,
  vdpaDeviceList,
  vdpaError,
  vdpaManagementDevices,
} from '../../src/native/vdpa.js';

const AF_NETLINK = 16;

const socketCall = bindLibc<(domain: number, type: number, protocol: number) => number>('socket', 'int', [
  'int',
  'int',
  'int',
]);
const getsockname = bindLibc<(fd: number, address: Uint8Array, length: Uint8Array) => number>(
  'getsockname',
  'int',
  ['int', 'void *', 'void *'],
);
const sendto = bindLibc<
  (fd: number, data: Uint8Array, n: number, flags: number, to: Uint8Array, length: number) => number
>('sendto', 'long', ['int', 'void *', 'size_t', 'int', 'void *', 'uint']);

/** The process's one netlink socket: its descriptor and its address. */
function netlinkSocket(): { fd: number; address: Uint8Array } {
  for (const fd of readdirSync('/proc/self/fd').map(Number)) {
    const address = new Uint8Array(12);
    if (getsockname(fd, address, new Uint8Array([12, 0, 0, 0])) === 0 && address[0] === AF_NETLINK) {
      return { fd, address };
    }
  }
  throw new Error('no netlink socket is open');
}

const seed = process.env['VDUSE_SEED'];
const parameters = { numRuns: 2000, ...(seed === undefined ? {} : { seed: Number(seed) }) };

function bytes(hex: string): Uint8Array {
  return Uint8Array.from(Buffer.from(hex.replace(/\s+/g, ''), 'hex'));
}

function isProtocolError(error: unknown): boolean {
  return error instanceof VduseError && error.code === 'PROTOCOL';
}

function attribute(type: number, value: Uint8Array): Uint8Array {
  const out = new Uint8Array((4 + value.length + 3) & ~3);
  const view = new DataView(out.buffer);
  view.setUint16(0, 4 + value.length, true);
  view.setUint16(2, type, true);
  out.set(value, 4);
  return out;
}

describe('requests', () => {
  test('the request that attaches a device is byte for byte what the vdpa command sends', () => {
    const request = encodeRequest({
      family: 0x1c,
      command: 3,
      version: 1,
      sequence: 9,
      flags: NLM_F.REQUEST | NLM_F.ACK,
      attributes: [
        [4, 'test'],
        [2, 'vduse'],
      ],
    });
    const expected = bytes(
      `2c000000 1c00 0500 09000000 00000000
       03 01 0000
       0900 0400 74657374 00 000000
       0a00 0200 7664757365 00 0000`,
    );
    assert.deepEqual(request, expected);
  });

  test('a text that the kernel would cut at its NUL, or that does not fit, is refused', () => {
    for (const text of ['a\0b', 'x'.repeat(0x10000)]) {
      assert.throws(
        () =>
          encodeRequest({
            family: 16,
            command: 1,
            version: 1,
            sequence: 1,
            flags: 1,
            attributes: [[1, text]],
          }),
        { code: 'INVALID_ARGUMENT' },
      );
    }
  });

  test('what is encoded decodes to itself', () => {
    const text = fc.string({ unit: 'grapheme', maxLength: 40 }).filter((value) => !value.includes('\0'));
    const attributes = fc.uniqueArray(fc.tuple(fc.integer({ min: 0, max: 0x3fff }), text), {
      selector: ([type]) => type,
      maxLength: 10,
    });
    fc.assert(
      fc.property(
        attributes,
        fc.nat(255),
        fc.integer({ min: 16, max: 1023 }),
        fc.nat(0xffff_ffff),
        (list, command, family, sequence) => {
          const encoded = encodeRequest({
            family,
            command,
            version: 1,
            sequence,
            flags: 5,
            attributes: list,
          });
          const [message, ...rest] = decodeMessages(encoded);
          assert.equal(rest.length, 0);
          assert.deepEqual([message.type, message.sequence, message.flags], [family, sequence, 5]);
          const generic = decodeGeneric(message);
          assert.equal(generic.command, command);
          for (const [type, value] of list) {
            assert.equal(generic.attributes.string(type), value);
          }
        },
      ),
      parameters,
    );
  });
});

describe('answers', () => {
  // Recorded from Linux 6.18: an attribute that is too long, with NETLINK_CAP_ACK and NETLINK_EXT_ACK.
  const refused = bytes(
    `68000000 0200 0003 07000000 7b1c0000
     eaffffff 6c000000 1000 0500 07000000 00000000
     2700 0100 417474726962757465206661696c656420706f6c6963792076616c69646174696f6e00 00
     0800 0200 14000000
     1400 0480 0800 0700 0f000000 0800 0100 0c000000`,
  );

  test('an acknowledgement gives errno and the kernel’s words', () => {
    const [message] = decodeMessages(refused);
    assert.equal(message.sequence, 7);
    assert.deepEqual(decodeOutcome(message), { errno: 22, text: 'Attribute failed policy validation' });
  });

  test('an acknowledgement that repeats the request is read past it', () => {
    const request = bytes('16000000 1000 0500 01000000 00000000 0102 0000 0500');
    const text = attribute(1, Buffer.from('why\0'));
    const payload = Buffer.concat([bytes('edffffff'), request, bytes('0000'), text]);
    const message = { type: NLMSG.ERROR, flags: NLM_F.ACK_TLVS, sequence: 1, payload };
    assert.deepEqual(decodeOutcome(message), { errno: 19, text: 'why' });
  });

  test('the end of a dump carries a result too', () => {
    const done = (payload: Uint8Array, flags = 0) => ({ type: NLMSG.DONE, flags, sequence: 1, payload });
    assert.deepEqual(decodeOutcome(done(bytes('00000000'))), { errno: 0, text: '' });
    const failed = Buffer.concat([bytes('f5ffffff'), attribute(1, Buffer.from('later\0'))]);
    assert.deepEqual(decodeOutcome(done(failed, NLM_F.ACK_TLVS)), { errno: 11, text: 'later' });
  });

  test('results that no kernel gives are refused', () => {
    for (const payload of ['', '000000', '01000000', '00000080', '00f0ffff']) {
      const message = { type: NLMSG.ERROR, flags: 0, sequence: 1, payload: bytes(payload) };
      assert.throws(() => decodeOutcome(message), isProtocolError, payload);
    }
  });

  test('an acknowledgement that lies about its request, or ends inside it, is refused', () => {
    const header = (length: string): Uint8Array => bytes(`edffffff ${length} 1000 0500 01000000 00000000`);
    const payloads = [header('ff000000'), header('0f000000'), header('10000000').subarray(0, 19)];
    for (const payload of payloads) {
      const message = { type: NLMSG.ERROR, flags: NLM_F.ACK_TLVS, sequence: 1, payload };
      assert.throws(() => decodeOutcome(message), isProtocolError);
    }
    const capped = NLM_F.ACK_TLVS | NLM_F.CAPPED;
    const cut = { type: NLMSG.ERROR, flags: capped, sequence: 1, payload: payloads[2] };
    assert.throws(() => decodeOutcome(cut), isProtocolError);
  });

  test('a generic message without its header is refused', () => {
    for (const payload of ['', '030100']) {
      const message = { type: 28, flags: 0, sequence: 1, payload: bytes(payload) };
      assert.throws(() => decodeGeneric(message), isProtocolError);
    }
  });

  test('a number of another size than asked for is refused, a type that is absent is undefined', () => {
    const attributes = new NetlinkAttributes(
      Buffer.concat([
        attribute(1, bytes('0102')),
        attribute(2, bytes('01020304')),
        attribute(3, bytes('0102030405060708')),
      ]),
    );
    assert.equal(attributes.u16(1), 0x0201);
    assert.equal(attributes.u32(2), 0x04030201);
    assert.equal(attributes.u64(3), 0x0807060504030201n);
    assert.throws(() => attributes.u32(1), isProtocolError);
    assert.throws(() => attributes.u16(2), isProtocolError);
    assert.throws(() => attributes.u64(2), isProtocolError);
    assert.equal(attributes.u32(9), undefined);
  });

  test('a nested attribute keeps its type, and the last of a type counts', () => {
    const attributes = new NetlinkAttributes(
      Buffer.concat([
        attribute(0x8004, bytes('0100')),
        attribute(4, bytes('0200')),
        attribute(0x4005, bytes('0300')),
      ]),
    );
    assert.equal(attributes.u16(4), 2);
    assert.equal(attributes.u16(5), 3);
  });

  test('lengths that lie are refused', () => {
    for (const hex of ['0f000000', '00000000', '11000000', 'ffffffff']) {
      assert.throws(() => decodeMessages(bytes(`${hex} 1000 0000 00000000 00000000`)), isProtocolError, hex);
    }
    for (const hex of ['0000 0100', '0300 0100', '0900 0100 00000000', '0800', '05000100 61000000 00']) {
      assert.throws(() => new NetlinkAttributes(bytes(hex)), isProtocolError, hex);
    }
  });

  function decodeEverything(input: Uint8Array): void {
    for (const message of decodeMessages(input)) {
      if (message.type === NLMSG.ERROR || message.type === NLMSG.DONE) {
        decodeOutcome(message);
      } else {
        const generic = decodeGeneric(message);
        decodeDevice(generic);
        decodeManagementDevice(generic);
      }
    }
  }

  function decodesOrIsRefused(input: Uint8Array): void {
    try {
      decodeEverything(input);
    } catch (error) {
      assert.ok(isProtocolError(error), String(error));
    }
  }

  test('any bytes decode or are refused', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), decodesOrIsRefused), parameters);
  });

  test('a true answer with bytes changed, or cut short, decodes or is refused', () => {
    const change = fc.tuple(fc.nat(refused.length - 1), fc.nat(255));
    fc.assert(
      fc.property(fc.array(change, { maxLength: 4 }), fc.nat(refused.length), (changes, length) => {
        const input = refused.slice(0, length);
        for (const [at, value] of changes) {
          input[at % Math.max(length, 1)] = value;
        }
        decodesOrIsRefused(input);
      }),
      parameters,
    );
    for (let length = 1; length < refused.length; length++) {
      assert.throws(() => decodeMessages(refused.subarray(0, length)), isProtocolError, `${length} bytes`);
    }
  });
});

describe('vDPA answers', () => {
  test('a device', () => {
    const payload = Buffer.concat([
      bytes('03 01 0000'),
      attribute(2, Buffer.from('vduse\0')),
      attribute(4, Buffer.from('disk\0')),
      attribute(5, bytes('02000000')),
      attribute(6, bytes('f41a0000')),
      attribute(7, bytes('04000000')),
      attribute(8, bytes('0001')),
    ]);
    assert.deepEqual(decodeDevice(decodeGeneric({ type: 28, flags: 2, sequence: 1, payload })), {
      name: 'disk',
      managementDevice: 'vduse',
      deviceId: 2,
      vendorId: 0x1af4,
      maxVqs: 4,
      maxVqSize: 256,
    });
  });

  test('a management device', () => {
    const payload = Buffer.concat([
      bytes('01 01 0000'),
      attribute(1, Buffer.from('pci\0')),
      attribute(2, Buffer.from('0000:01:00.0\0')),
      attribute(3, bytes('0600000000000000')),
      attribute(0, bytes('')),
    ]);
    assert.deepEqual(decodeManagementDevice(decodeGeneric({ type: 28, flags: 2, sequence: 1, payload })), {
      name: 'pci/0000:01:00.0',
      deviceIds: [1, 2],
      maxVqs: undefined,
      supportedFeatures: undefined,
    });
  });

  const add = 3;
  const del = 4;

  test('errors say what was tried, what the kernel said, and have stable codes', () => {
    const missing = { errno: 19, text: 'vdpa: Fail to find the specified management device' };
    const error = vdpaError('adding vDPA device "x"', add, missing);
    assert.equal(error.code, 'MODULE_MISSING');
    assert.equal(
      error.message,
      'adding vDPA device "x": vdpa: Fail to find the specified management device (ENODEV)',
    );
    assert.ok(error.cause instanceof SystemCallError && error.cause.errno === 19);
    const denied = vdpaError('adding vDPA device "x"', add, { errno: 1, text: '' });
    assert.match(denied.message, /^adding vDPA device "x": operation not permitted \(EPERM\)$/);
    assert.match(denied.hint ?? '', /CAP_NET_ADMIN/);
  });

  test('every errno has its code', () => {
    const code = (command: number, errno: number) => vdpaError('x', command, { errno, text: '' }).code;
    assert.deepEqual(
      [1, 13, 17, 16, 95, 22, 12].map((errno) => code(add, errno)),
      [
        'PERMISSION_DENIED',
        'PERMISSION_DENIED',
        'ALREADY_EXISTS',
        'BUSY',
        'NOT_SUPPORTED',
        'ATTACH_FAILED',
        'ATTACH_FAILED',
      ],
    );
    assert.deepEqual(
      [19, 22, 12].map((errno) => code(del, errno)),
      ['NOT_FOUND', 'INVALID_ARGUMENT', 'SYSTEM_CALL'],
    );
  });

  test('names that the kernel would read as others are refused before they get there', async () => {
    for (const name of ['', 'a/b', 'a\0b', 'x'.repeat(256), 'ä'.repeat(128)]) {
      await assert.rejects(vdpaDeviceAdd({ name, managementDevice: 'vduse' }), { code: 'INVALID_ARGUMENT' });
      await assert.rejects(vdpaDeviceDelete(name), { code: 'INVALID_ARGUMENT' });
    }
  });
});

describe('the kernel', () => {
  /** The names of all families: a dump of the control family. */
  async function families(socket: GenericNetlinkSocket): Promise<(string | undefined)[]> {
    const answer = await socket.transact({ family: 0x10, command: 3, version: 2, dump: true });
    assert.equal(answer.errno, 0, answer.text);
    return answer.messages.map(({ attributes }) => attributes.string(2));
  }

  async function withSocket<T>(work: (socket: GenericNetlinkSocket) => Promise<T>): Promise<T> {
    const socket = new GenericNetlinkSocket();
    try {
      return await work(socket);
    } finally {
      socket.close();
    }
  }

  test('knows the control family by name, and other names not', async () => {
    await withSocket(async (socket) => {
      assert.equal(await socket.resolveFamily('nlctrl'), 0x10);
      assert.equal(await socket.resolveFamily('no-such-family'), undefined);
    });
  });

  test('lists its families, among them the one that lists', async () => {
    await withSocket(async (socket) => {
      const names = await families(socket);
      assert.ok(names.includes('nlctrl'), names.join());
      assert.equal(new Set(names).size, names.length);
    });
  });

  test('refuses with its own words, which arrive', async () => {
    await withSocket(async (socket) => {
      // Family names have at most 15 characters.
      const failure = socket.resolveFamily('x'.repeat(40));
      await assert.rejects(failure, /looking up family .*Attribute failed policy validation/);
      // The socket still works.
      assert.equal(await socket.resolveFamily('nlctrl'), 0x10);
    });
  });

  test('refuses a command and a family that it does not have', async () => {
    await withSocket(async (socket) => {
      const command = { version: 2, command: 0xff, family: 0x10 };
      assert.deepEqual(await socket.transact(command), { errno: 95, text: '', messages: [] });
      assert.equal((await socket.transact({ ...command, family: 0x3ff })).errno, 2);
      assert.equal((await socket.transact({ ...command, dump: true })).errno, 95);
    });
  });

  test('answers many requests on one socket, each with its own', async () => {
    await withSocket(async (socket) => {
      for (let round = 0; round < 50; round++) {
        assert.equal(
          await socket.resolveFamily(round % 2 === 0 ? 'nlctrl' : 'none'),
          round % 2 === 0 ? 16 : undefined,
        );
      }
    });
  });

  test('delivers nothing that another socket sends to ours', async () => {
    await withSocket(async (socket) => {
      const { address } = netlinkSocket();
      const stranger = socketCall(AF_NETLINK, 3, 16);
      try {
        const forged = new Uint8Array(20);
        assert.equal(sendto(stranger, forged, forged.length, 0, address, address.length), -1);
        assert.equal(errno(), 111, 'ECONNREFUSED: a connected socket takes messages from the kernel only');
      } finally {
        closeSync(stranger);
      }
      assert.equal(await socket.resolveFamily('nlctrl'), 0x10);
    });
  });

  test('an answer to an earlier request is passed over', async () => {
    await withSocket(async (socket) => {
      const forgotten = { family: 16, command: 3, version: 2, sequence: 77, flags: 5 };
      writeSync(netlinkSocket().fd, encodeRequest({ ...forgotten, attributes: [[2, 'nlctrl']] }));
      assert.equal(await socket.resolveFamily('no-such-family'), undefined);
    });
  });

  test('the calling thread stays free while a request is under way', async () => {
    await withSocket(async (socket) => {
      let turns = 0;
      const timer = setInterval(() => {
        turns += 1;
      }, 0);
      for (let round = 0; round < 200; round++) {
        await families(socket);
      }
      clearInterval(timer);
      assert.ok(turns > 0);
    });
  });

  test('without the vDPA bus every function says which modules are missing', async (context) => {
    if (await withSocket((socket) => socket.resolveFamily('vdpa'))) {
      context.skip('this kernel has the vDPA bus');
      return;
    }
    const isMissing = (error: unknown): boolean =>
      error instanceof VduseError &&
      error.code === 'MODULE_MISSING' &&
      /modprobe -a vduse/.test(error.hint ?? '');
    const attempts = [
      vdpaDeviceAdd({ name: 'x', managementDevice: 'vduse' }),
      vdpaDeviceDelete('x'),
      vdpaDeviceList(),
      vdpaManagementDevices(),
    ];
    for (const result of await Promise.allSettled(attempts)) {
      assert.ok(result.status === 'rejected' && isMissing(result.reason));
    }
  });
});
