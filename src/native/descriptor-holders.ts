/** Which processes have what open, as procfs tells. `root` is where procfs is looked for. */
import { resolve } from 'node:path';
import { SystemCallError } from '../base/errors.js';
import { listDirectory, readLink, readText } from './kernel-files.js';

export interface DescriptorHolders {
  readonly processes: readonly { readonly pid: number; readonly command: string }[];
  /** Processes that could not be looked into: without privileges, those of other users. */
  readonly unreadable: number;
}

/** The processes with a descriptor whose link, such as `/dev/null` or `socket:[123]`, is one of those meant. */
export function descriptorHolders(isMeant: (link: string) => boolean, root = '/'): DescriptorHolders {
  const processes: { pid: number; command: string }[] = [];
  let unreadable = 0;
  for (const pid of listDirectory(root, 'proc').filter((entry) => /^\d+$/.test(entry))) {
    try {
      if (descriptorLinks(Number(pid), root).some(isMeant)) {
        processes.push({ pid: Number(pid), command: readText(root, `proc/${pid}/comm`) ?? '' });
      }
    } catch (error) {
      if (!(error instanceof SystemCallError)) {
        throw error;
      }
      unreadable += 1;
    }
  }
  return { processes, unreadable };
}

/** Throws SYSTEM_CALL for a process of somebody else. */
function descriptorLinks(pid: number, root: string): string[] {
  return listDirectory(root, `proc/${pid}/fd`)
    .map((fd) => readLink(root, `proc/${pid}/fd/${fd}`))
    .filter((link) => link !== undefined);
}

/** SO_ACCEPTCON, in the flags of /proc/net/unix: the socket listens. */
const acceptsConnections = 0x10000;

/** The paths of Unix sockets that listen, by their inodes. */
function listeningSockets(root: string): Map<string, string> {
  const sockets = new Map<string, string>();
  for (const line of (readText(root, 'proc/net/unix') ?? '').split('\n')) {
    // Num RefCount Protocol Flags Type St Inode Path
    const [, , , flags, , , inode, ...path] = line.trim().split(' ').filter(Boolean);
    if (path.length > 0 && (Number.parseInt(flags, 16) & acceptsConnections) !== 0) {
      sockets.set(`socket:[${inode}]`, path.join(' '));
    }
  }
  return sockets;
}

export interface SocketOwner {
  readonly pid: number;
  readonly command: string;
  /** Paths of the other Unix sockets that it listens on. */
  readonly otherSockets: readonly string[];
}

/** Who listens on the Unix socket of that path; undefined where nobody does or may be looked into. */
export function socketOwner(path: string, root = '/'): SocketOwner | undefined {
  const sockets = listeningSockets(root);
  const [process] = descriptorHolders((link) => sockets.get(link) === path, root).processes;
  if (process === undefined) {
    return undefined;
  }
  const directory = readLink(root, `proc/${process.pid}/cwd`) ?? '/';
  const otherSockets = descriptorLinks(process.pid, root)
    .map((link) => sockets.get(link))
    .filter((other) => other !== undefined)
    .filter((other) => other !== path)
    .map((other) => resolve(directory, other));
  return { ...process, otherSockets };
}
