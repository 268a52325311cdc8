import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { labCache, temporaryPath } from './cache.js';
import { LabError } from './errors.js';
import { withProgress } from './progress.js';
import { run } from './tools.js';

const KEYRINGS = ['debian-archive-keyring.pgp', 'debian-archive-keyring.gpg'].map(
  (name) => `/usr/share/keyrings/${name}`,
);

/** The host's own mirror is the one that is sure to be reachable from here. */
export async function mirror(): Promise<string> {
  const chosen = process.env['VDUSE_LAB_MIRROR'];
  if (chosen) return chosen;
  // Sources that apt itself can't read don't matter here: only the address is wanted.
  const listed = await run('apt-get', [
    'indextargets',
    '--format',
    '$(REPO_URI)',
    'Created-By: Packages',
  ]).catch(() => '');
  const own = listed
    .toString()
    .split('\n')
    .find((uri) => /^https?:.*\/debian\/?$/.test(uri));
  if (own === undefined) {
    throw new LabError(
      "apt's sources name no mirror of Debian to take packages from: set VDUSE_LAB_MIRROR to the address of one",
    );
  }
  return own;
}

/**
 * Packages of a Debian suite that need not be the host's: apt works on lists of its own under the cache, and
 * what it downloads is unpacked, never installed, so the host's package database isn't touched.
 */
export class DebianSuite {
  readonly #directory: string;

  constructor(
    private readonly suite: string,
    private readonly kind: 'deb' | 'deb-src' = 'deb',
  ) {
    this.#directory = labCache('apt', kind === 'deb' ? suite : `${suite}-source`);
  }

  #options(): string[] {
    const at = (name: string) => join(this.#directory, name);
    return [
      `Dir::State::Lists=${at('lists')}`,
      // An empty status file: what the host has installed or pinned says nothing about this suite.
      `Dir::State::status=${at('status')}`,
      `Dir::Cache=${at('cache')}`,
      `Dir::Etc::SourceList=${at('sources.list')}`,
      'Dir::Etc::SourceParts=/dev/null',
      'Dir::Etc::Preferences=/dev/null',
      'Dir::Etc::PreferencesParts=/dev/null',
      'APT::Architecture=amd64',
      'APT::Sandbox::User=root',
      'Acquire::Languages=none',
      'Acquire::Retries=3',
      // Else a mirror that can't be reached is a mere warning, and the lists are silently missing.
      'APT::Update::Error-Mode=any',
    ].flatMap((option) => ['-o', option]);
  }

  /** Fetches the suite's package lists, about 10 MB. */
  async update(): Promise<void> {
    const keyring = KEYRINGS.find((path) => existsSync(path));
    if (keyring === undefined) {
      throw new LabError(
        `The lab checks Debian's signatures and found none of ${KEYRINGS.join(', ')}. ` +
          'Install with: apt-get install debian-archive-keyring',
      );
    }
    for (const name of ['lists/partial', 'cache/archives/partial']) {
      mkdirSync(join(this.#directory, name), { recursive: true });
    }
    const source = await mirror();
    writeFileSync(join(this.#directory, 'status'), '');
    writeFileSync(
      join(this.#directory, 'sources.list'),
      `${this.kind} [arch=amd64 signed-by=${keyring}] ${source} ${this.suite} main\n`,
    );
    try {
      await withProgress(`fetching the package lists of Debian ${this.suite} from ${source}`, () =>
        // A suite is allowed to change its code name: "stable" does so every second year.
        run('apt-get', [...this.#options(), '--allow-releaseinfo-change', '-q', 'update']),
      );
    } catch (cause) {
      throw new LabError(
        `The package lists of Debian ${this.suite} can't be fetched from ${source}. Is the network up? ` +
          `VDUSE_LAB_MIRROR names another mirror. ${cause instanceof Error ? cause.message : cause}`,
        { cause },
      );
    }
  }

  /** A field of a package's record, of the newest version that the suite has; undefined if it has none. */
  async field(packageName: string, name: string): Promise<string | undefined> {
    let record: Buffer;
    try {
      record = await run('apt-cache', [...this.#options(), 'show', '--no-all-versions', packageName]);
    } catch {
      return undefined;
    }
    return new RegExp(`^${name}: (.*)$`, 'm').exec(record.toString())?.[1];
  }

  /** The path of the package's .deb under the cache, downloaded unless it's there already. */
  async download(packageName: string): Promise<string> {
    const version = (await this.field(packageName, 'Version'))?.replace(/:/g, '%3a');
    const size = Number(await this.field(packageName, 'Size'));
    const directory = labCache('debs', this.suite);
    const path = join(directory, `${packageName}_${version}_amd64.deb`);
    if (existsSync(path)) return path;

    const temporary = temporaryPath(path);
    mkdirSync(temporary, { recursive: true });
    try {
      await withProgress(`downloading ${packageName}, ${(size / 1e6).toFixed(1)} MB`, () =>
        run('apt-get', [...this.#options(), '-q', 'download', packageName], { cwd: temporary }),
      );
      const downloaded = readdirSync(temporary).find((name) => name.endsWith('.deb'));
      if (downloaded === undefined)
        throw new LabError(`apt-get download ${packageName} left no .deb behind.`);
      renameSync(join(temporary, downloaded), path);
    } finally {
      rmSync(temporary, { recursive: true, force: true });
    }
    return path;
  }

  /** The upstream tarball of a source package, downloaded to a directory; needs lists of the kind deb-src. */
  async downloadTarball(sourceName: string, directory: string): Promise<string> {
    const args = ['-q', 'source', '--download-only', '--tar-only', sourceName];
    await withProgress(`downloading the source of ${sourceName}`, () =>
      run('apt-get', [...this.#options(), ...args], { cwd: directory }),
    );
    const name = readdirSync(directory).find((entry) => /\.orig\.tar\.\w+$/.test(entry));
    if (name === undefined) throw new LabError(`apt-get source ${sourceName} left no tarball behind.`);
    return join(directory, name);
  }

  /** Keeps the given packages and forgets older ones: each kernel is more than 100 MB. */
  forgetOthers(keep: readonly string[]): void {
    const directory = labCache('debs', this.suite);
    for (const name of readdirSync(directory)) {
      const path = join(directory, name);
      if (!keep.includes(path)) rmSync(path, { recursive: true, force: true });
    }
  }
}
