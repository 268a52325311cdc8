/** The versions that the daemon tells. */
import { readFileSync } from 'node:fs';
import { assert } from '../base/assert.js';
import type { QmpVersion } from '../qmp/protocol.js';

/** The version of qemu-storage-daemon whose command line and QMP are followed. */
const qemu = { major: 7, minor: 2, micro: 0 } as const;

export const qemuInterfaceVersion = `${qemu.major}.${qemu.minor}`;

/** Folders between this file and the package's own: as installed, and as built in the repository. */
const PACKAGE_FILES = ['../../package.json', '../../../package.json'];

function readPackageVersion(): string {
  for (const file of PACKAGE_FILES) {
    const version = versionIn(new URL(file, import.meta.url));
    if (version !== undefined) {
      return version;
    }
  }
  assert(false, 'the package has a package.json');
}

function versionIn(file: URL): string | undefined {
  try {
    const description = JSON.parse(readFileSync(file, 'utf8')) as { name?: string; version?: string };
    return description.name === 'vduse' ? description.version : undefined;
  } catch {
    return undefined;
  }
}

export const packageVersion = readPackageVersion();

export const qmpVersion: QmpVersion = { qemu, package: `vduse ${packageVersion}` };
