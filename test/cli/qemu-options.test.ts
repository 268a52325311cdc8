import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { VduseError } from '../../src/base/errors.js';
import type { BlockNodeOptions } from '../../src/block/node.js';
import { parseCommandLine, type StartupPlan } from '../../src/cli/storage-daemon/command-line.js';
import type { StorageDaemon } from '../../src/daemon/storage-daemon.js';

function planOf(...args: string[]): StartupPlan {
  const { plan, print } = parseCommandLine(args);
  assert.ok(plan !== undefined, print);
  return plan;
}

/** What the steps would ask of a daemon. */
async function requestsOf(...args: string[]): Promise<[string, unknown][]> {
  const requests: [string, unknown][] = [];
  const daemon = new Proxy(
    {},
    {
      get: (_, method) => async (request: unknown) => {
        requests.push([String(method), request]);
      },
    },
  ) as StorageDaemon;
  for (const step of planOf(...args).steps) {
    await step.apply(daemon);
  }
  return requests;
}

async function nodeOf(argument: string): Promise<unknown> {
  const [[method, options]] = await requestsOf('--blockdev', argument);
  assert.equal(method, 'addNode');
  return options as BlockNodeOptions;
}

function failure(...args: string[]): { message: string; hint: string | undefined } {
  try {
    parseCommandLine(args);
  } catch (error) {
    assert.ok(error instanceof VduseError, String(error));
    return { message: error.message, hint: error.hint };
  }
  assert.fail(`accepted: ${args.join(' ')}`);
}

describe('the command line', () => {
  it('is the one that VDUSE was proposed with', async () => {
    const requests = await requestsOf(
      '--chardev',
      'socket,id=charmonitor,path=/tmp/qmp.sock,server,nowait',
      '--monitor',
      'chardev=charmonitor',
      '--blockdev',
      'driver=host_device,cache.direct=on,aio=native,filename=/dev/sdx,node-name=disk0',
      '--export',
      'vduse-blk,id=test,node-name=disk0,writable=on,vduse-id=1,num-queues=16,queue-size=128',
    );
    assert.deepEqual(requests, [
      [
        'addChardev',
        { id: 'charmonitor', address: { type: 'unix', path: '/tmp/qmp.sock' }, server: true, wait: false },
      ],
      ['addMonitor', { chardev: 'charmonitor', pretty: false }],
      [
        'addNode',
        {
          driver: 'host_device',
          nodeName: 'disk0',
          filename: '/dev/sdx',
          aio: 'native',
          cache: { direct: true },
        },
      ],
      [
        'addExport',
        {
          type: 'vduse-blk',
          id: 'test',
          nodeName: 'disk0',
          writable: true,
          name: '1',
          queueCount: 16,
          queueSize: 128,
        },
      ],
    ]);
  });

  it('is the one that QEMU documents', async () => {
    const [request] = await requestsOf(
      '--export=type=vduse-blk,id=test,node-name=disk0,name=vduse0,writable=on,num-queues=2,queue-size=256,logical-block-size=4k,serial=S1,iothread.0=a,iothread.1=b,attach=virtio',
    );
    assert.deepEqual(request, [
      'addExport',
      {
        type: 'vduse-blk',
        id: 'test',
        nodeName: 'disk0',
        name: 'vduse0',
        writable: true,
        queueCount: 2,
        queueSize: 256,
        logicalBlockSize: 4096,
        serial: 'S1',
        attach: 'virtio',
        iothreads: ['a', 'b'],
      },
    ]);
  });

  it('takes JSON for every option of its own', async () => {
    assert.deepEqual(
      await requestsOf(
        '--object',
        '{"qom-type":"iothread","id":"io0","poll-max-ns":32768}',
        '--blockdev',
        '{"driver":"file","node-name":"a","filename":"a,b","cache":{"direct":true,"no-flush":false}}',
        '--chardev',
        '{"backend":"socket","id":"c","host":"127.0.0.1","port":"4444","server":true}',
        '--monitor',
        '{"chardev":"c","mode":"control","pretty":true}',
        '--export',
        '{"type":"vduse-blk","id":"e","node-name":"a","name":"n","iothread":"io0"}',
      ),
      [
        ['addObject', { type: 'iothread', id: 'io0', pollUs: 32.768 }],
        [
          'addNode',
          { driver: 'file', nodeName: 'a', filename: 'a,b', cache: { direct: true, noFlush: false } },
        ],
        [
          'addChardev',
          { id: 'c', address: { type: 'inet', host: '127.0.0.1', port: 4444 }, server: true, wait: true },
        ],
        ['addMonitor', { chardev: 'c', pretty: true }],
        ['addExport', { type: 'vduse-blk', id: 'e', nodeName: 'a', name: 'n', iothreads: ['io0'] }],
      ],
    );
  });

  it('opens the nodes that its text says', async () => {
    assert.deepEqual(
      await nodeOf(
        'file,node-name=a,filename=/d.img,read-only=on,auto-read-only=yes,discard=unmap,detect-zeroes=unmap,locking=off,aio=io_uring,cache.no-flush=on',
      ),
      {
        driver: 'file',
        nodeName: 'a',
        filename: '/d.img',
        readOnly: true,
        autoReadOnly: true,
        discard: 'unmap',
        detectZeroes: 'unmap',
        locking: 'off',
        aio: 'io_uring',
        cache: { noFlush: true },
      },
    );
    assert.deepEqual(await nodeOf('null-co,node-name=n,size=1.5G,read-zeroes=on,auto-read-only=on'), {
      driver: 'null-co',
      nodeName: 'n',
      size: 1.5 * 2 ** 30,
      readZeroes: true,
    });
    assert.deepEqual(await nodeOf('memory,node-name=m,size=1048576,read-only=off'), {
      driver: 'memory',
      nodeName: 'm',
      size: 1 << 20,
      readOnly: false,
    });
  });

  it('has settings beside its steps', () => {
    const defaults = planOf();
    assert.deepEqual(defaults, {
      steps: [],
      daemonize: false,
      pidFile: undefined,
      logFormat: 'text',
      logLevel: 'info',
      trace: false,
    });
    const plan = planOf(
      '--daemonize',
      '--pidfile',
      '/p',
      '--log-format',
      'json',
      '--log-level=debug',
      '-T',
      'x',
    );
    assert.deepEqual(plan, {
      steps: [],
      daemonize: true,
      pidFile: '/p',
      logFormat: 'json',
      logLevel: 'debug',
      trace: true,
    });
  });

  it('prints its help, that of an option, and its version', () => {
    for (const args of [['--help'], ['-h'], ['--daemonize', '-h', '--nonsense']]) {
      assert.match(parseCommandLine(args).print ?? '', /^Usage: vduse-storage-daemon \[options\]\n/);
    }
    const help = parseCommandLine(['--help']).print ?? '';
    for (const option of ['blockdev', 'chardev', 'monitor', 'object', 'export']) {
      const own = parseCommandLine([`--${option}`, 'help']).print ?? '';
      assert.ok(own.startsWith(`  --${option} `) && help.includes(own), option);
    }
    assert.ok(help.split('\n').every((line) => line.length <= 80));
    assert.match(parseCommandLine(['--export', 'vduse-blk,?']).print ?? '', /vduse-id=/);
    for (const flag of ['-V', '--version']) {
      assert.match(
        parseCommandLine([flag]).print ?? '',
        /^vduse-storage-daemon version \d+\.\d+\.\d+.* \(follows qemu-storage-daemon 7\.2\)\n$/,
      );
    }
  });

  it('is refused before anything is set up, with the option and the reason', () => {
    const cases: [string[], string, string?][] = [
      [['--exprot', 'x'], "unrecognized option '--exprot'", "did you mean '--export'?"],
      [['--nonsense'], "unrecognized option '--nonsense'", 'see vduse-storage-daemon --help'],
      [['extra'], 'extra: Unexpected argument'],
      [['--blockdev'], "option '--blockdev' requires an argument"],
      [['-T'], "option '--trace' requires an argument"],
      [['--pidfile'], "option '--pidfile' requires an argument"],
      [
        ['--blockdev', 'null-co,node-name=a,read-olny=on'],
        "--blockdev null-co,node-name=a,read-olny=on: Parameter 'read-olny' is unexpected",
        "did you mean 'read-only'?",
      ],
      [['--blockdev', 'null-co'], "--blockdev null-co: 'node-name' must be specified for the root node"],
      [
        ['--blockdev', '{"driver":"null-co","node-name":"a","size":"5"}'],
        `--blockdev {"driver":"null-co","node-name":"a","size":"5"}: Invalid parameter type for 'size', expected: integer`,
      ],
      [['--blockdev', '{"driver":'], '--blockdev {"driver":: JSON parse error, premature EOI'],
      [['--blockdev', '{} {}'], '--blockdev {} {}: Expecting at most one JSON value'],
      [
        ['--blockdev', 'qcow2,node-name=a'],
        "--blockdev qcow2,node-name=a: Parameter 'driver' does not accept value 'qcow2'",
        'supported: file, host_device, null-co, memory, rbd, http, https, nbd, raw, fault, throttle',
      ],
      [
        ['--export', 'fuse,id=e,node-name=a'],
        "--export fuse,id=e,node-name=a: Parameter 'type' does not accept value 'fuse'",
        'supported: vduse-blk, nbd, vhost-user-blk',
      ],
      [
        ['--export', 'vduse-blk,id=e,node-name=a'],
        "--export vduse-blk,id=e,node-name=a: Parameter 'name' is missing",
        'the VDUSE device name, which becomes /dev/vduse/NAME',
      ],
      [
        ['--object', 'filter-dump,id=a'],
        "--object filter-dump,id=a: Parameter 'qom-type' does not accept value 'filter-dump'",
        'supported: iothread, secret, throttle-group, tls-creds-x509, tls-creds-psk, authz-simple, authz-list, authz-list-file, authz-pam',
      ],
      [['--nbd-server', 'addr.type=unix'], "--nbd-server addr.type=unix: Parameter 'addr.path' is missing"],
      [
        ['--nbd-server', 'addr.type=inet,addr.host=0.0.0.0,addr.port=1'],
        "--nbd-server addr.type=inet,addr.host=0.0.0.0,addr.port=1: NBD server: host '0.0.0.0' is not a loopback address",
        'whoever reaches the server can read and write: add tls-creds, or use a Unix socket',
      ],
      [
        ['--object', 'authz-pam,id=a,service=nbd'],
        '--object authz-pam,id=a,service=nbd: invalid object type: authz-pam',
        'PAM is not asked here: use authz-list or authz-list-file',
      ],
      [
        ['--nbd-server', 'addr.type=inet,addr.host=localhost,addr.port=http'],
        "--nbd-server addr.type=inet,addr.host=localhost,addr.port=http: port 'http' is not a number from 0 to 65535",
      ],
      [
        ['--nbd-server', 'addr.type=fd,addr.str=1'],
        "--nbd-server addr.type=fd,addr.str=1: file descriptor 1 can't be a socket that was passed on",
      ],
      [['--chardev', 'null,id=9'], "--chardev null,id=9: Parameter 'id' expects an identifier"],
      [
        ['--chardev', 'socket,id=c,path=/s,wait=off'],
        "--chardev socket,id=c,path=/s,wait=off: 'wait' option is incompatible with socket in client connect mode",
      ],
      [
        ['--chardev', 'socket,id=c,host=0.0.0.0,port=1,server=on'],
        "--chardev socket,id=c,host=0.0.0.0,port=1,server=on: chardev: socket: host '0.0.0.0' is not a loopback address",
        'a monitor has no password; use path=, or 127.0.0.1 and a tunnel',
      ],
      [
        ['--chardev', 'socket,id=c,host=localhost,server=on'],
        '--chardev socket,id=c,host=localhost,server=on: chardev: socket: no port given',
      ],
      [
        ['--monitor', 'c,mode=readline'],
        '--monitor c,mode=readline: Only QMP is supported',
        'use mode=control',
      ],
      [
        ['--log-level', 'loud'],
        "option '--log-level <level>' argument 'loud' is invalid. Allowed choices are trace, debug, info, warn, error, silent.",
      ],
    ];
    for (const [args, message, hint] of cases) {
      const found = failure(...args);
      assert.equal(found.message, message);
      if (hint !== undefined) {
        assert.equal(found.hint, hint);
      }
    }
  });

  it('does not repeat the data of a secret', () => {
    const plain = failure('--object', 'secret,id=s,data=pass,,word,format=x').message;
    assert.equal(
      plain,
      "--object secret,id=s,data=...,format=x: Parameter 'format' does not accept value 'x'",
    );
    const comma = failure('--object', 'secret,id=s,data=pass,word,format=raw').message;
    assert.equal(comma, "--object secret,id=s,data=...,...,format=raw: Expected '=' after parameter '...'");
    const json = failure('--object', '{"qom-type":"secret","id":"s","data":"pass\\"word","x":1}').message;
    assert.equal(
      json,
      `--object {"qom-type":"secret","id":"s","data":"...","x":1}: Parameter 'x' is unexpected`,
    );
  });
});
