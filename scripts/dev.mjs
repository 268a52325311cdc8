#!/usr/bin/env node

// Runs a development task from a fresh clone: sees to dependencies, build and system packages, then starts the
// compiled program. Plain JavaScript without dependencies, because it runs before there are any.

import { ensureBuilt, ensureDependencies, ensurePackages } from './dev-prepare.mjs';
import { checkout, finish, runTask } from './dev-run.mjs';
import { testFiles, testSuites } from './dev-tests.mjs';

/** What the lab needs of the host: QEMU itself, and what the guest finds in the host's file system. */
const LAB_PACKAGES = {
  'qemu-system-x86': 'runs the virtual machine',
  'qemu-system-common': 'has qemu-storage-daemon, to compare with',
  'qemu-utils': 'makes and checks disk images',
  iproute2: 'has vdpa, which attaches devices',
  fio: 'measures and verifies block devices',
  nbdkit: 'serves disks over NBD, to compare with',
  openssl: 'makes certificates to test with',
  'libnbd-bin': 'has nbdinfo and nbdcopy, clients to test with',
  kmod: 'loads modules in the machine',
  e2fsprogs: 'makes file systems',
  'xz-utils': 'unpacks kernel modules',
  zstd: 'unpacks the kernel',
  'debian-archive-keyring': 'verifies the kernel that is downloaded',
};

/** What bench/vhost-user.ts puts itself beside, and what it builds its client with. */
const VHOST_USER_BENCH_PACKAGES = {
  'qemu-system-common': 'has qemu-storage-daemon, to compare with',
  'qemu-utils': 'has qemu-nbd, to compare with',
  debootstrap: 'sets up the system in which the client, fio with libblkio, is compiled',
  'debian-archive-keyring': 'verifies what that system is made of',
  'librsvg2-bin': 'draws the plot as PNG',
  'fonts-dejavu-core': 'is the letters in it',
};

const CEPH_PACKAGES = {
  'ceph-mon': 'is the monitor of a Ceph cluster',
  'ceph-osd': 'stores the objects of a Ceph cluster',
  'ceph-common': 'has ceph and rbd',
  librbd1: 'is the client library for RBD images',
};

/** The lab's own tests have a cluster beside the machine. */
const LAB_TEST_PACKAGES = { ...LAB_PACKAGES, ...CEPH_PACKAGES };

/** The programs that the clients' tests bring beside those: storage elsewhere, real servers of it. */
const CLIENT_PACKAGES = {
  ...LAB_TEST_PACKAGES,
  'qemu-block-extra': "has QEMU's rbd driver, to compare with",
  nginx: 'serves images over HTTP',
  openssl: 'makes certificates',
};

const BENCH_PACKAGES = { 'vhost-user': VHOST_USER_BENCH_PACKAGES, remote: CLIENT_PACKAGES };

const USAGE = `Usage: node scripts/dev.mjs TASK [ARGS...]

Tasks:
  lab [ARGS...]                     run a command, or a shell, in a machine with a VDUSE kernel (lab --help)
  quickstart [ARGS...]              the guided tour
  test [SUITE] [-- NODE-TEST-ARGS]  run tests: ${testSuites.join(', ')} (default all);
                                    for example: test unit -- --test-name-pattern=queue
  bench NAME [ARGS...]              run bench/NAME.ts

Each task first installs npm's and Debian's packages and compiles the tree, as far as that is needed.
VDUSE_IGNORE_TYPE_ERRORS=1 goes on when the compiler reports errors.
`;

async function prepare({ packages, required = true }) {
  await ensureDependencies();
  await ensureBuilt();
  if (packages) await ensurePackages(packages, required);
}

async function test(args) {
  const separator = args.indexOf('--');
  const own = separator === -1 ? args : args.slice(0, separator);
  const nodeArgs = separator === -1 ? [] : args.slice(separator + 1);
  const [suite = 'all', ...rest] = own;
  if (!testSuites.includes(suite) || rest.length > 0) {
    finish(
      64,
      `test takes one of ${testSuites.join(', ')}, then "--" and node's arguments; got: ${own.join(' ')}`,
    );
  }
  const runs = testFiles(suite);
  const lab = runs.some((run) => run.needsLab) ? LAB_TEST_PACKAGES : undefined;
  await prepare({ packages: runs.some((run) => run.needsClients) ? CLIENT_PACKAGES : lab });

  let worst = 0;
  for (const { title, files, args: runArgs } of runs) {
    if (files.length === 0) {
      process.stderr.write(`dev: there are no ${title} tests\n`);
      continue;
    }
    process.stderr.write(`dev: ${title} tests, ${files.length} file${files.length === 1 ? '' : 's'}\n`);
    const reporter = nodeArgs.some((arg) => arg.startsWith('--test-reporter'))
      ? []
      : ['--test-reporter=spec'];
    const flags = ['--enable-source-maps', '--test', ...reporter, ...runArgs, ...nodeArgs];
    const status = await runTask(process.execPath, [...flags, ...files]);
    worst ||= status;
  }
  return worst;
}

async function main([task, ...args]) {
  switch (task) {
    case 'lab': {
      // The help must not need anything but the build.
      const onlyHelp = ['--help', '-h'].includes(args[0]);
      await prepare({ packages: onlyHelp ? undefined : LAB_PACKAGES });
      return await runTask(process.execPath, [
        '--enable-source-maps',
        checkout('build/lab/main.js'),
        ...args,
      ]);
    }
    case 'quickstart':
      await prepare({ packages: args.includes('--lab') ? LAB_PACKAGES : undefined });
      return await runTask(process.execPath, [
        '--enable-source-maps',
        checkout('build/tour/main.js'),
        ...args,
      ]);
    case 'bench': {
      const [name, ...rest] = args;
      if (!name || !/^[\w-]+$/.test(name)) finish(64, 'bench takes the name of a program in bench/.');
      // The help must not need anything but the build.
      const onlyHelp = rest.some((arg) => ['--help', '-h'].includes(arg));
      const packages = BENCH_PACKAGES[name] ?? LAB_PACKAGES;
      await prepare({ packages: onlyHelp ? undefined : packages, required: false });
      return await runTask(process.execPath, [
        '--enable-source-maps',
        checkout('build/bench', `${name}.js`),
        ...rest,
      ]);
    }
    case 'test':
      return await test(args);
    case undefined:
    case 'help':
    case '--help':
    case '-h':
      process.stdout.write(USAGE);
      return task === undefined ? 64 : 0;
    default:
      return finish(64, `There is no task "${task}".\n\n${USAGE}`);
  }
}

process.exitCode = await main(process.argv.slice(2));
