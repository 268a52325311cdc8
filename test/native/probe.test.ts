import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { release, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { VduseError } from '../../src/base/errors.js';
import { kernelRelease, loadModules, moduleState } from '../../src/native/modules.js';
import { effectiveCapabilities, ioUringSupport, vduseControl } from '../../src/native/probe.js';
import {
  bindVdpaDriver,
  vdpaBusDevice,
  vdpaBusDevices,
  vduseDeviceHolders,
  vduseDevices,
} from '../../src/native/vdpa-bus.js';

let root = '';
let fdsBefore = 0;

/** Writes a file of the made-up machine, or makes a link of it where the text starts with "-> ". */
function put(path: string, text = ''): void {
  const full = join(root, path);
  mkdirSync(dirname(full), { recursive: true });
  if (text.startsWith('-> ')) {
    symlinkSync(text.slice(3), full);
  } else {
    writeFileSync(full, text);
  }
}

function get(path: string): string {
  return readFileSync(join(root, path), 'utf8');
}

function hasCode(code: string, hint = /./): (error: unknown) => boolean {
  return (error) => error instanceof VduseError && error.code === code && hint.test(error.hint ?? '');
}

/** Runs as nobody, whom file permissions stop. */
function unprivileged<T>(work: () => T): T {
  process.seteuid?.(65534);
  try {
    return work();
  } finally {
    process.seteuid?.(0);
  }
}

const needsRoot = { skip: process.getuid?.() !== 0 && 'needs root' };

beforeEach(() => {
  fdsBefore = readdirSync('/proc/self/fd').length;
  root = mkdtempSync(join(tmpdir(), 'vduse-probe-'));
  chmodSync(root, 0o755);
});

afterEach(() => {
  rmSync(root, { recursive: true });
  assert.equal(readdirSync('/proc/self/fd').length, fdsBefore, 'descriptors were left open');
});

describe('modules', () => {
  const files = 'lib/modules/6.1.0-test';

  beforeEach(() => {
    put('proc/sys/kernel/osrelease', '6.1.0-test\n');
    put(
      'proc/modules',
      'vduse 57344 0 - Live 0x0000000000000000\nvdpa 36864 2 vduse,virtio_vdpa, Live 0x0\n',
    );
    put(`${files}/modules.builtin`, 'kernel/drivers/block/loop.ko\nkernel/lib/crc-ccitt.ko\n');
    put(
      `${files}/modules.dep`,
      'kernel/drivers/vhost/vhost_vdpa.ko.xz: kernel/drivers/vhost/vhost.ko.xz kernel/drivers/only-needed.ko.xz\n' +
        'kernel/drivers/virtio/virtio-vdpa.ko.zst:\nkernel/drivers/block/nbd.ko:\n',
    );
  });

  test('each state', () => {
    const states = {
      vduse: 'loaded',
      vdpa: 'loaded',
      loop: 'builtin',
      'crc-ccitt': 'builtin',
      crc_ccitt: 'builtin',
      vhost_vdpa: 'loadable',
      'vhost-vdpa': 'loadable',
      virtio_vdpa: 'loadable',
      nbd: 'loadable',
      'only-needed': 'missing',
      vdus: 'missing',
      'vduse 5': 'missing',
    };
    for (const [name, state] of Object.entries(states)) {
      assert.equal(moduleState(name, root), state, name);
    }
  });

  test('sysfs tells loaded from built in where the lists are absent', () => {
    rmSync(join(root, 'proc/modules'));
    rmSync(join(root, 'lib'), { recursive: true });
    assert.equal(moduleState('vduse', root), 'missing');
    put('sys/module/vduse/initstate', 'live\n');
    assert.equal(moduleState('vduse', root), 'loaded');
    put('sys/module/loop/parameters/max_loop', '8\n');
    assert.equal(moduleState('loop', root), 'builtin');
    put('sys/bus/vdpa/drivers/virtio_vdpa/bind');
    assert.equal(moduleState('virtio-vdpa', root), 'builtin');
    assert.equal(moduleState('vhost_vdpa', root), 'missing');
  });

  test('an empty machine has no modules', () => {
    rmSync(join(root, 'proc'), { recursive: true });
    assert.equal(moduleState('vduse', root), 'missing');
    assert.equal(kernelRelease(root), '');
  });

  describe('loading', () => {
    const path = process.env['PATH'];

    /** A modprobe that does what the script says, and notes its arguments. */
    function fakeModprobe(script: string): void {
      put('bin/modprobe', `#!/bin/sh\necho "$@" > ${root}/called\n${script}\n`);
      chmodSync(join(root, 'bin/modprobe'), 0o755);
      process.env['PATH'] = join(root, 'bin');
    }

    afterEach(() => {
      process.env['PATH'] = path ?? '';
    });

    test('loads what is not there, with -a and in order', async () => {
      fakeModprobe(`for m in vhost_vdpa nbd; do echo "$m 1 0 - Live 0x0" >> ${root}/proc/modules; done`);
      assert.deepEqual(await loadModules(['vduse', 'vhost-vdpa', 'loop', 'nbd'], root), [
        'vhost-vdpa',
        'nbd',
      ]);
      assert.equal(get('called'), '-a vhost-vdpa nbd\n');
    });

    test('nothing to load: modprobe is not run', async () => {
      fakeModprobe('exit 1');
      assert.deepEqual(await loadModules(['vduse', 'loop'], root), []);
      assert.ok(!existsSync(join(root, 'called')));
    });

    test('a complaint is no failure if the modules are there', async () => {
      fakeModprobe(`echo warning >&2; echo "nbd 1 0 - Live 0x0" >> ${root}/proc/modules; exit 1`);
      assert.deepEqual(await loadModules(['nbd'], root), ['nbd']);
    });

    test('failures say what modprobe said', async () => {
      fakeModprobe('echo "modprobe: FATAL: Module nbd not found in directory /lib/modules/x" >&2; exit 1');
      await assert.rejects(loadModules(['nbd'], root), (error) => {
        assert.match(
          (error as Error).message,
          /^loading kernel modules nbd: modprobe: FATAL: Module nbd not found/,
        );
        return hasCode('MODULE_MISSING', /linux-modules-extra-6\.1\.0-test/)(error);
      });
      fakeModprobe(`echo "modprobe: ERROR: could not insert 'nbd': Operation not permitted" >&2; exit 1`);
      await assert.rejects(loadModules(['nbd'], root), hasCode('PERMISSION_DENIED', /modprobe -a nbd/));
      fakeModprobe('exit 0');
      await assert.rejects(loadModules(['nbd'], root), /they did not appear/);
    });

    test('names that modprobe would take for options are refused', async () => {
      fakeModprobe('exit 0');
      for (const name of ['', '-r', '--remove', 'a b', '../x', 'a;b', 'a\n']) {
        await assert.rejects(loadModules(['nbd', name], root), hasCode('INVALID_ARGUMENT', /^/), name);
      }
      assert.ok(!existsSync(join(root, 'called')));
    });

    test('the real modprobe and a module that no kernel has', async () => {
      await assert.rejects(loadModules(['no_such_module_of_any_kernel']), hasCode('MODULE_MISSING'));
    });
  });
});

describe('capabilities', () => {
  const status = (mask: string): string =>
    `Name:\tnode\nCapPrm:\tffffffffffffffff\nCapEff:\t${mask}\nCapBnd:\t0\n`;

  test('the two that matter, by their bits', () => {
    const cases: [string, boolean, boolean][] = [
      ['0000000000000000', false, false],
      ['0000000000001000', true, false],
      ['0000000000200000', false, true],
      ['000001ffffffffff', true, true],
      ['000001ffffdfefff', false, false],
    ];
    for (const [mask, netAdmin, sysAdmin] of cases) {
      put('proc/self/status', status(mask));
      const found = effectiveCapabilities(root);
      assert.deepEqual([found.netAdmin, found.sysAdmin], [netAdmin, sysAdmin], mask);
      assert.equal(found.effective, BigInt(`0x${mask}`));
    }
  });

  test('a user namespace has only its own', () => {
    put('proc/self/status', status('000001ffffffffff'));
    assert.equal(effectiveCapabilities(root).ofTheHost, true);
    put('proc/self/uid_map', '         0          0 4294967295\n');
    assert.equal(effectiveCapabilities(root).ofTheHost, true);
    for (const map of [
      '         0       1000          1\n',
      '0 100000 65536\n',
      '0 0 1\n1 1 4294967294\n',
      '',
    ]) {
      put('proc/self/uid_map', map);
      assert.equal(effectiveCapabilities(root).ofTheHost, false, map);
    }
  });

  test('of this process', () => {
    const mask = /CapEff:\s*(\w+)/.exec(readFileSync('/proc/self/status', 'latin1'))?.[1];
    assert.equal(effectiveCapabilities().effective, BigInt(`0x${mask}`));
    assert.throws(() => effectiveCapabilities(root), hasCode('NOT_SUPPORTED', /procfs/));
  });
});

describe('the control device', () => {
  test('absent, usable, and not for everybody', needsRoot, () => {
    const absent = vduseControl(root);
    assert.deepEqual([absent.usable, absent.errno], [false, 2]);
    assert.match(absent.reason, /dev\/vduse\/control: no such file.*\(ENOENT\)\. Load the module/);
    put('dev/vduse/control');
    assert.deepEqual(vduseControl(root), { path: absent.path, usable: true, errno: 0, reason: '' });
    chmodSync(absent.path, 0o600);
    const denied = unprivileged(() => vduseControl(root));
    assert.deepEqual([denied.usable, denied.errno], [false, 13]);
    assert.match(denied.reason, /EACCES.*Run as root/);
  });

  test('of this machine', () => {
    const found = vduseControl();
    assert.equal(found.path, '/dev/vduse/control');
    assert.equal(found.usable, found.errno === 0);
    assert.equal(found.errno === 2, !existsSync(found.path));
  });
});

describe('io_uring', () => {
  test('the kernel answers, and the setting is read', () => {
    const found = ioUringSupport();
    assert.equal(found.usable, found.errno === 0);
    const setting = '/proc/sys/kernel/io_uring_disabled';
    assert.equal(
      found.disabledSetting,
      existsSync(setting) ? Number(readFileSync(setting, 'latin1')) : undefined,
    );
    put('proc/sys/kernel/io_uring_disabled', '2\n');
    assert.equal(ioUringSupport(root).disabledSetting, 2);
    put('proc/sys/kernel/io_uring_disabled', '-1\n');
    assert.equal(ioUringSupport(root).disabledSetting, undefined);
  });

  test('a seccomp filter, as containers have one, is seen', () => {
    // The filter: load the call's number; io_uring_setup (425) gets EPERM, everything else goes through.
    const script = `
      const { bindLibc, addressOf } = await import(process.argv[1] + 'ffi.js');
      const { ioUringSupport } = await import(process.argv[1] + 'probe.js');
      const prctl = bindLibc('prctl', 'int', ['int', 'ulong', 'uintptr_t', 'ulong', 'ulong']);
      const words = [0x20, 0, 0x01000015, 425, 0x06, 0x00050001, 0x06, 0x7fff0000];
      const filter = Uint32Array.from(words);
      const program = new BigUint64Array([4n, BigInt(addressOf(filter))]);
      const results = [prctl(38, 1, 0, 0, 0), prctl(22, 2, addressOf(program), 0, 0)];
      console.log(JSON.stringify({ results, found: ioUringSupport('/none'), filter: filter.length }));`;
    const folder = new URL('../../src/native/', import.meta.url).href;
    const command = ['--input-type=module', '-e', script, folder];
    const run = spawnSync(process.execPath, command, { encoding: 'utf8' });
    assert.equal(run.stderr, '');
    assert.deepEqual(JSON.parse(run.stdout), {
      results: [0, 0],
      found: { usable: false, errno: 1 },
      filter: 8,
    });
  });
});

describe('the kernel release', () => {
  test('is that of uname', () => assert.equal(kernelRelease(), release()));
});

describe('VDUSE devices', () => {
  test('with what each kernel says of them', () => {
    put('sys/class/vduse/control/dev', '511:0\n');
    put('sys/class/vduse/old/msg_timeout', '30\n');
    put('sys/class/vduse/new/msg_timeout', '0\n');
    put('sys/class/vduse/new/bounce_size', '67108864\n');
    assert.deepEqual(vduseDevices(root), [
      { name: 'new', msgTimeoutSeconds: 0, bounceSizeBytes: 67108864 },
      { name: 'old', msgTimeoutSeconds: 30, bounceSizeBytes: undefined },
    ]);
  });

  test('none without the module', () => assert.deepEqual(vduseDevices(root), []));
});

describe('the vDPA bus', () => {
  /** As the kernel lays it out: the bus has links, the devices are below their VDUSE device. */
  function addDevice(name: string, driver?: string): string {
    const real = `sys/devices/virtual/vduse/${name}/${name}`;
    put(`${real}/uevent`);
    put(`sys/bus/vdpa/devices/${name}`, `-> ../../../devices/virtual/vduse/${name}/${name}`);
    if (driver !== undefined) {
      put(`${real}/driver`, `-> ../../../../../bus/vdpa/drivers/${driver}`);
    }
    return real;
  }

  function addDriver(name: string): void {
    put(`sys/bus/vdpa/drivers/${name}/bind`);
    put(`sys/bus/vdpa/drivers/${name}/unbind`);
  }

  beforeEach(() => {
    addDriver('virtio_vdpa');
    addDriver('vhost_vdpa');
  });

  test('devices with the disk, the vhost device, or nothing', () => {
    const disk = addDevice('disk', 'virtio_vdpa');
    put(`${disk}/virtio3/block/vda/size`, '2048\n');
    put(`${disk}/power/control`);
    const vm = addDevice('vm', 'vhost_vdpa');
    put(`${vm}/vhost-vdpa-0/dev`, '510:0\n');
    const failed = addDevice('failed', 'virtio_vdpa');
    put(`${failed}/virtio4/status`, '0x83\n');
    addDevice('unbound');
    const nothing = { virtioDevice: undefined, blockDevice: undefined, vhostDevice: undefined };
    assert.deepEqual(vdpaBusDevices(root), [
      { ...nothing, name: 'disk', driver: 'virtio_vdpa', virtioDevice: 'virtio3', blockDevice: '/dev/vda' },
      { ...nothing, name: 'failed', driver: 'virtio_vdpa', virtioDevice: 'virtio4' },
      { ...nothing, name: 'unbound', driver: undefined },
      { ...nothing, name: 'vm', driver: 'vhost_vdpa', vhostDevice: '/dev/vhost-vdpa-0' },
    ]);
    assert.equal(vdpaBusDevice('disk', root)?.blockDevice, '/dev/vda');
    assert.equal(vdpaBusDevice('dis', root), undefined);
    assert.equal(vdpaBusDevice('../drivers', root), undefined);
  });

  test('none without the module', () => {
    rmSync(join(root, 'sys'), { recursive: true });
    assert.deepEqual(vdpaBusDevices(root), []);
    assert.equal(vdpaBusDevice('x', root), undefined);
  });

  test('binding: first the override, then away from the old driver, then to the new one', async () => {
    const device = addDevice('disk', 'virtio_vdpa');
    put(`${device}/driver_override`, '(null)\n');
    await bindVdpaDriver('disk', 'vhost_vdpa', root);
    assert.equal(get(`${device}/driver_override`).slice(0, 10), 'vhost_vdpa');
    assert.equal(get('sys/bus/vdpa/drivers/virtio_vdpa/unbind'), 'disk');
    assert.equal(get('sys/bus/vdpa/drivers/vhost_vdpa/bind'), 'disk');
    assert.equal(get('sys/bus/vdpa/drivers/virtio_vdpa/bind'), '');
  });

  test('binding a device that has no driver, on a kernel without overrides', async () => {
    const device = addDevice('disk');
    await bindVdpaDriver('disk', 'virtio_vdpa', root);
    assert.ok(!existsSync(join(root, device, 'driver_override')));
    assert.equal(get('sys/bus/vdpa/drivers/virtio_vdpa/bind'), 'disk');
  });

  test('binding to the driver that has it already does nothing', async () => {
    addDevice('disk', 'virtio_vdpa');
    await bindVdpaDriver('disk', 'virtio_vdpa', root);
    assert.equal(get('sys/bus/vdpa/drivers/virtio_vdpa/unbind'), '');
    assert.equal(get('sys/bus/vdpa/drivers/virtio_vdpa/bind'), '');
  });

  test('binding refused, before anything was changed', async () => {
    await assert.rejects(bindVdpaDriver('none', 'virtio_vdpa', root), hasCode('NOT_FOUND'));
    addDevice('disk', 'virtio_vdpa');
    rmSync(join(root, 'sys/bus/vdpa/drivers/vhost_vdpa'), { recursive: true });
    await assert.rejects(
      bindVdpaDriver('disk', 'vhost_vdpa', root),
      hasCode('MODULE_MISSING', /modprobe vhost_vdpa/),
    );
    assert.equal(get('sys/bus/vdpa/drivers/virtio_vdpa/unbind'), '');
  });

  test('binding that the kernel refuses', needsRoot, async () => {
    addDevice('disk');
    const bind = 'sys/bus/vdpa/drivers/virtio_vdpa/bind';
    rmSync(join(root, bind));
    // A device that answers every write with ENOSPC, as a driver's probe does with its own errno.
    put(bind, '-> /dev/full');
    await assert.rejects(bindVdpaDriver('disk', 'virtio_vdpa', root), (error) => {
      assert.match((error as Error).message, /write "disk" to .*virtio_vdpa\/bind: .*\(ENOSPC\)/);
      return hasCode('ATTACH_FAILED', /dmesg/)(error);
    });
    rmSync(join(root, bind));
    put(bind);
    chmodSync(join(root, bind), 0o200);
    process.seteuid?.(65534);
    const binding = bindVdpaDriver('disk', 'virtio_vdpa', root).finally(() => process.seteuid?.(0));
    await assert.rejects(binding, hasCode('PERMISSION_DENIED', /root/));
  });
});

describe('who has a VDUSE device open', () => {
  test('by the links of /proc', needsRoot, () => {
    put('proc/10/comm', 'qemu-storage-da\n');
    put('proc/10/fd/0', '-> /dev/null');
    put('proc/10/fd/7', '-> /dev/vduse/disk');
    put('proc/11/comm', 'node\n');
    put('proc/11/fd/3', '-> /dev/vduse/disk2');
    put('proc/11/fd/4', '-> socket:[1234]');
    put('proc/12/comm', 'contained\n');
    put('proc/12/fd/9', '-> /var/lib/pod/dev/vduse/disk');
    put('proc/13/comm', 'kthread\n');
    put('proc/self/fd/1', '-> /dev/vduse/disk');
    assert.deepEqual(vduseDeviceHolders('disk', root), {
      processes: [
        { pid: 10, command: 'qemu-storage-da' },
        { pid: 12, command: 'contained' },
      ],
      unreadable: 0,
    });
    assert.deepEqual(vduseDeviceHolders('dis', root), { processes: [], unreadable: 0 });
    chmodSync(join(root, 'proc/10/fd'), 0o700);
    assert.deepEqual(
      unprivileged(() => vduseDeviceHolders('disk', root)),
      { processes: [{ pid: 12, command: 'contained' }], unreadable: 1 },
    );
  });

  test('among the real processes, this one', () => {
    const path = join(root, 'vduse', 'held');
    put('vduse/held');
    assert.ok(!vduseDeviceHolders('held').processes.some(({ pid }) => pid === process.pid));
    const fd = openSync(path, 'r');
    const holders = vduseDeviceHolders('held').processes;
    closeSync(fd);
    assert.deepEqual(
      holders.map(({ pid }) => pid),
      [process.pid],
    );
  });
});
