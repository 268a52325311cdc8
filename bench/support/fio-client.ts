/**
 * The client of the vhost-user benchmark: fio with the libblkio engine, which no Debian package of fio has. It is
 * built in a throw-away chroot of a Debian that has libblkio, and kept, with its libraries and its loader, in the
 * cache: it then runs on any host, without the chroot, without mounts, without root.
 */
import { execFile } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, rmSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, join } from 'node:path';
import { promisify } from 'node:util';
import {
  cachePath,
  createDirectoryAtomic,
  readJson,
  temporaryPath,
  withCacheLock,
  writeFileAtomic,
} from '../../lab/cache.js';
import { DebianSuite, mirror } from '../../lab/debian.js';
import { LabError } from '../../lab/errors.js';
import { say, withProgress } from '../../lab/progress.js';
import { findTool, requireTools, run } from '../../lab/tools.js';

/** The first Debian whose libblkio has the vhost-user driver in a release. */
const BUILD_SUITE = 'trixie';
/** A mirror need not carry every source; any fio from 3.33 on has the engine. */
const SOURCE_SUITES = ['trixie', 'sid', 'bookworm'];
const BUILD_PACKAGES = [
  'gcc',
  'libc6-dev',
  'make',
  'pkg-config',
  'libblkio-dev',
  'libnbd-dev',
  'libaio-dev',
  'liburing-dev',
  'zlib1g-dev',
];

export interface FioClient {
  /** The program and the arguments that come before fio's own. */
  readonly command: readonly string[];
  readonly version: string;
}

interface Built {
  readonly loader: string;
}

async function engineWorks(command: readonly string[], engine: string): Promise<boolean> {
  const [program, ...args] = command;
  try {
    const { stdout } = await promisify(execFile)(program, [...args, `--enghelp=${engine}`]);
    return stdout.includes(engine === 'libblkio' ? 'libblkio_path' : 'uri');
  } catch {
    return false;
  }
}

async function describe(command: readonly string[]): Promise<FioClient | undefined> {
  if (!(await engineWorks(command, 'libblkio')) || !(await engineWorks(command, 'nbd'))) return undefined;
  const [program, ...args] = command;
  const { stdout } = await promisify(execFile)(program, [...args, '--version']);
  return { command, version: stdout.trim() };
}

function cachedCommand(directory: string): string[] | undefined {
  const built = readJson<Built>(join(directory, 'built.json'));
  if (built === undefined) return undefined;
  return [join(directory, built.loader), '--library-path', directory, join(directory, 'fio')];
}

/** Finds the client, or builds it: about three minutes and 500 MB that are given back afterwards. */
export async function findFioClient(): Promise<FioClient> {
  const named = process.env['VDUSE_BENCH_FIO'];
  if (named) {
    const client = await describe([named]);
    if (client !== undefined) return client;
    throw new LabError(
      `VDUSE_BENCH_FIO names ${named}, which is no fio with the libblkio and nbd engines: unset it to have one built.`,
    );
  }
  const own = await describe(['fio']);
  if (own !== undefined) return own;

  const directory = cachePath('bench', `fio-${process.arch}`);
  return await withCacheLock(async () => {
    const cached = cachedCommand(directory);
    const found = cached === undefined ? undefined : await describe(cached);
    if (found !== undefined) return found;
    await build(directory);
    const fresh = await describe(cachedCommand(directory) ?? []);
    if (fresh === undefined) throw new LabError(`The fio that was built in ${directory} does not run here.`);
    return fresh;
  });
}

async function build(directory: string): Promise<void> {
  requireTools(
    ['debootstrap', 'unshare', 'apt-get'],
    'Building the client of the benchmark, fio with libblkio,',
  );
  if (process.getuid?.() !== 0) {
    throw new LabError(
      'Building the client of the benchmark, fio with libblkio, needs root for debootstrap. ' +
        'Run the benchmark once as root, or name a fio with the libblkio and nbd engines by VDUSE_BENCH_FIO.',
    );
  }
  say(`no fio with the libblkio engine yet: it is built once and kept in ${directory}`, 'bench');
  const root = temporaryPath(cachePath('bench', 'chroot'));
  mkdirSync(root, { recursive: true });
  try {
    await makeChroot(root);
    const tarball = await fetchSource(root);
    await compile(root, basename(tarball));
    await createDirectoryAtomic(directory, (path) => collect(root, path));
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}

async function makeChroot(root: string): Promise<void> {
  const source = await mirror();
  const label = `setting up a Debian ${BUILD_SUITE} to compile fio in, from ${source} (about two minutes)`;
  // What debootstrap mounts is seen in this namespace alone, and goes with it whatever happens.
  const command = ['--mount', '--propagation', 'private', findTool('debootstrap') ?? 'debootstrap'];
  const options = ['--variant=minbase', `--include=${BUILD_PACKAGES.join(',')}`];
  await withProgress(
    label,
    () => run('unshare', [...command, ...options, BUILD_SUITE, root, source]),
    'bench',
  );
}

async function fetchSource(root: string): Promise<string> {
  const failures: string[] = [];
  for (const name of SOURCE_SUITES) {
    const suite = new DebianSuite(name, 'deb-src');
    try {
      await suite.update();
      return await suite.downloadTarball('fio', root);
    } catch (error) {
      failures.push(error instanceof Error ? error.message : String(error));
    }
  }
  throw new LabError(`No Debian suite of the mirror has the source of fio.\n${failures.join('\n')}`);
}

async function compile(root: string, tarball: string): Promise<void> {
  const script = [
    'mkdir /fio',
    `tar --extract --file=/${tarball} --directory=/fio --strip-components=1`,
    'cd /fio',
    // The result may be kept for another machine of the same architecture.
    './configure --enable-libnbd --disable-native',
    `make -j${availableParallelism()} fio`,
    "ldd fio | awk '/=> \\// { print $3 } /^[[:space:]]*\\/.*ld-linux/ { print $1 }' > libraries",
  ].join(' && ');
  await withProgress('compiling fio (about half a minute)', () => chroot(root, script), 'bench');
}

async function chroot(root: string, script: string): Promise<Buffer> {
  return await run('unshare', ['--mount', '--propagation', 'private', 'chroot', root, 'sh', '-c', script]);
}

/** Takes fio, its libraries and its loader out of the chroot. */
async function collect(root: string, directory: string): Promise<void> {
  const libraries = (await chroot(root, 'cat /fio/libraries')).toString().trim().split('\n');
  const loader = libraries.find((path) => basename(path).startsWith('ld-linux'));
  if (loader === undefined || !existsSync(join(root, 'fio/fio'))) {
    throw new LabError('fio was compiled and left no program that can be taken out of its chroot.');
  }
  for (const path of libraries) {
    cpSync(join(root, path), join(directory, basename(path)), { dereference: true });
  }
  cpSync(join(root, 'fio/fio'), join(directory, 'fio'));
  writeFileAtomic(
    join(directory, 'built.json'),
    `${JSON.stringify({ loader: basename(loader) } satisfies Built)}\n`,
  );
}
