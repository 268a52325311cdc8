import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { packageVersion } from '../../src/daemon/version.js';
import { makeTempDir } from '../support/temp-dir.js';

const program = fileURLToPath(new URL('../../src/cli/vduse.js', import.meta.url));
const directory = makeTempDir();
const runDirectory = join(directory, 'run');

function vduse(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [program, ...args], {
    encoding: 'utf8',
    env: { ...process.env, VDUSE_RUN_DIR: runDirectory },
  });
  return { status, stdout, stderr };
}

describe('vduse', () => {
  it('shows its version and its help on standard output', () => {
    assert.deepEqual(vduse('--version'), { status: 0, stdout: `vduse ${packageVersion}\n`, stderr: '' });
    const { status, stdout, stderr } = vduse('--help');
    assert.equal(status, 0);
    assert.match(stdout, /Examples:\n {2}vduse doctor/);
    assert.equal(stderr, '');
  });

  const commands = [
    'export',
    'serve',
    'create',
    'convert',
    'list',
    'resize',
    'remove',
    'doctor',
    'mirror',
    'qmp',
    'top',
    'bench',
  ];

  it('lists all of its commands, and the exit statuses', () => {
    const { stdout } = vduse('help');
    const listed = [...stdout.matchAll(/^ {2}([a-z]+) .*\[options\]|^ {2}(qmp) /gm)].map(
      ([, name, other]) => name ?? other,
    );
    assert.deepEqual(listed.sort(), [...commands].sort());
    assert.match(stdout, /Exit status: 0 done; 1 it failed; 2 the command line is wrong; 128 \+ n /);
  });

  for (const command of commands) {
    it(`has help with an example for ${command}`, () => {
      const { status, stdout } = vduse(command, '--help');
      assert.equal(status, 0);
      assert.match(stdout, new RegExp(`Examples:\\n {2}vduse ${command}`));
      assert.ok(
        stdout.split('\n').every((line) => line.length <= 120),
        'lines fit on a screen',
      );
    });
  }

  const wrong: [string[], RegExp][] = [
    [[], /no command was given/],
    [['exprt', 'x'], /unknown command 'exprt'\n {2}hint: Did you mean export\?/],
    [['help', 'exprt'], /unknown command 'exprt'\n {2}hint: Did you mean export\?/],
    [['exprt', '--help'], /unknown command 'exprt'\n {2}hint: Did you mean export\?/],
    [['what', '--help'], /unknown command 'what'\n {2}hint: There are: export, serve, /],
    [['what', 'x'], /unknown command 'what'\n {2}hint: There are: export, serve, /],
    [['help', 'what'], /unknown command 'what'\n {2}hint: There are: export, serve, /],
    [['export'], /missing required argument 'image'\n {2}hint: See vduse export --help\./],
    [['export', ''], /an image has no empty name/],
    [['serve', 'x'], /required option '--nbd <address>' not specified/],
    [['serve', 'x', '--nbd', 'tcp:99999'], /--nbd: 'tcp:99999': a port is at most 65535/],
    [
      ['serve', 'x', '--nbd', 'tcp:80x'],
      /--nbd: 'tcp:80x' is neither a path nor tcp:PORT\n {2}hint: TCP is on /,
    ],
    [['serve', 'x', '--nbd', 'localhost:10809'], /'localhost:10809' is neither a path nor tcp:PORT/],
    [['serve', '', '--nbd', 'x'], /an image has no empty name/],
    [['convert', 'x'], /missing required argument 'target'\n {2}hint: See vduse convert --help\./],
    [['convert', '', 'x'], /an image has no empty name/],
    [['convert', 'x', 'y', 'z'], /too many arguments/],
    [['convert', 'rbd:', 'y'], /^vduse: 'rbd:': Pool name is required\n {2}hint: rbd:POOL\/IMAGE/],
    [['convert', 'rbd:p/i:x=1', 'y'], /^vduse: 'rbd:p\/i:x=1': unknown key 'x'\n {2}hint: known: conf/],
    [['convert', 'driver=file', 'y'], /driver=file: Parameter 'filename' is missing/],
    [['convert', 'driver=file,filename=x,foo=1', 'y'], /Parameter 'foo' is unexpected\n {2}hint: known: /],
    [['mirror', 'a', 'b'], /required option '--monitor <socket>' not specified/],
    [['mirror', 'a', '', '--monitor', 'x'], /an image has no empty name/],
    [['mirror', 'a', 'b', '--monitor', 'x', '--sync', 'half'], /Allowed choices are full, top, none/],
    [['mirror', 'a', 'b', '--monitor', 'x', '--speed', '-5'], /--speed: size '-5': it is no size/],
    [['bench'], /missing required argument 'node'\n {2}hint: See vduse bench --help\./],
    [['bench', ''], /an image has no empty name/],
    [['list', 'x'], /too many arguments/],
    [['qmp'], /missing required argument 'socket'/],
    [['qmp', 'x', 'query-jobs', 'what'], /'what' is no KEY=VALUE/],
    [['top'], /missing required argument 'socket'/],
    [['top', 'x', '--interval', '1'], /--interval: '1' is no whole number from 50/],
    [['export', 'x', '--quues', '2'], /unknown option '--quues'\n {2}hint: Did you mean --queues\?/],
    [['export', 'x', '--queues', '0'], /--queues: '0' is no whole number from 1/],
    [['export', 'x', '--queue-size', '3'], /--queue-size: '3' is no whole number from 4/],
    [['export', 'x', '--queue-size', '100000'], /--queue-size: '100000' is no whole number from 4 to 32768/],
    [['export', 'x', '--queue-size', '100'], /100 is no power of two\n {2}hint: .*64 and 128/],
    [['export', 'x', '--block-size', '768'], /768 is no power of two/],
    [['export', 'x', '--name', 'a/b'], /--name: .*it has a slash/],
    [['export', 'x', '--name', 'control'], /--name: .*reserved/],
    [['export', 'x', '--name', 'x'.repeat(92)], /is longer than \d+ bytes/],
    [['export', 'x', '--serial', 'x'.repeat(21)], /is longer than 20 bytes/],
    [['export', 'x', '--discard', 'maybe'], /Allowed choices are unmap, ignore/],
    [['export', 'x', '--interval', '0'], /--interval: '0' is no number of seconds/],
    [['export', 'x', '--aio', 'native'], /--aio native needs --cache-direct/],
    [['export', 'x', '--detect-zeroes', 'unmap', '--discard', 'ignore'], /needs --discard unmap/],
    [['export', 'x', '--vhost', '--no-attach'], /exclude each other/],
    [['export', 'null:1000'], /null:1000: the size must be a multiple of 512/],
    [['export', 'memory:much'], /memory:much: size 'much': it is no size/],
    [['export', 'memory:1M', '--cache-direct'], /are for images and disks/],
    [['create', 'x', '1M', 'y'], /too many arguments/],
    [['resize', 'x', '-1M'], /unknown option '-1M'/],
    [['resize', '../x', '1M'], /it has a slash/],
    [['remove', '..'], /reserved/],
  ];
  for (const [args, expected] of wrong) {
    it(`refuses: vduse ${args.join(' ').slice(0, 60)}`, () => {
      const { status, stdout, stderr } = vduse(...args);
      assert.equal(status, 2, stderr);
      assert.match(stderr, expected);
      assert.match(stderr, /^vduse: .*\n {2}hint: .*\n$/);
      assert.equal(stdout, '');
    });
  }
});

describe('errors of vduse export', () => {
  it('are sentences', () => {
    const { status, stdout, stderr } = vduse('export', join(directory, 'absent.img'));
    assert.equal(status, 1);
    assert.equal(stdout, '');
    assert.match(stderr, /^vduse: cannot open '.*absent.img': no such file.*\n {2}hint: .*vduse create/);
  });

  it('are an event with --json', () => {
    const { status, stdout, stderr } = vduse('export', directory, '--json');
    assert.equal(status, 1);
    assert.equal(stderr, '');
    const event = JSON.parse(stdout) as Record<string, unknown>;
    assert.equal(event['event'], 'error');
    assert.equal(event['code'], 'IMAGE_INVALID');
    assert.match(String(event['message']), /it is a directory/);
  });
});

describe('without the device', () => {
  it('list shows nothing and is content', () => {
    const { status, stdout } = vduse('list', '--json');
    assert.equal(status, 0);
    assert.ok(Array.isArray(JSON.parse(stdout)));
  });

  it('resize and remove say that it is not there', () => {
    for (const args of [
      ['resize', 'no-such-device', '1M'],
      ['remove', 'no-such-device'],
    ]) {
      const { status, stderr } = vduse(...args);
      assert.equal(status, 1);
      assert.match(stderr, /there is no VDUSE device 'no-such-device'\n {2}hint: 'vduse list'/);
    }
  });

  it('doctor tells each thing that is missing, in both formats', () => {
    const { status, stdout } = vduse('doctor', '--json');
    const { works, checks } = JSON.parse(stdout) as {
      works: boolean;
      checks: { name: string; status: string; message: string; fix: string | null }[];
    };
    assert.equal(status, works ? 0 : 1);
    assert.equal(
      works,
      checks.every((check) => check.status !== 'fail'),
    );
    for (const check of checks.filter(({ name, status }) => status === 'fail' && name.startsWith('module'))) {
      assert.notEqual(check.fix, null, check.name);
    }
    const text = vduse('doctor');
    assert.equal(text.status, status);
    assert.match(text.stdout, works ? /Exports work here\./ : /Exports do not work here yet\./);
    assert.equal(existsSync(runDirectory), false, 'looking must not make the directory');
  });
});
