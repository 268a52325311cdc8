/**
 * Stream sockets of the Unix domain that pass file descriptors (SCM_RIGHTS), which Node's own sockets cannot.
 * Every socket here is non-blocking: a call that would wait says so instead. Descriptors are plain numbers for
 * a reactor to watch. Layouts: struct msghdr and cmsghdr of 64-bit Linux (unix(7), cmsg(3)).
 *
 * An address is a path, or "@" and a name of the abstract namespace, the way ss and systemd write it. A path
 * that starts with "@" is written "./@...".
 */
import { fchmodSync, lstatSync, unlinkSync } from 'node:fs';
import { assert } from '../base/assert.js';
import { VduseError } from '../base/errors.js';
import { Errno } from './errno.js';
import { closeFd, setNonBlocking } from './fd.js';
import { addressOf, bindLibc, check, errno, systemCallError } from './ffi.js';
import {
  AF_UNIX,
  connectCall,
  SOCK_CLOEXEC,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  SOL_SOCKET,
  sockaddrUn,
  socketCall,
  socketOption,
  unixPathBytesMax,
} from './socket-calls.js';

const SO_ACCEPTCONN = 30;
const SCM_RIGHTS = 1;
const MSG_CTRUNC = 0x8;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x4000_0000;
const EADDRINUSE = 98;
const ECONNABORTED = 103;
const ECONNREFUSED = 111;

/** The kernel's SCM_MAX_FD: descriptors of one message. */
export const passedFdsMax = 253;
const BACKLOG = 16;
/** Connections that were given up before they could be accepted, skipped in one call. */
const ABORTED_MAX = 16;

/** struct msghdr, 56 bytes, whose name and flags stay 0 when sending; our one struct iovec follows it. */
const MSGHDR = { iov64: 16, iovlen64: 24, control64: 32, controllen64: 40, flags32: 48, bytes: 56 } as const;
const IOVEC = { base64: MSGHDR.bytes, length64: MSGHDR.bytes + 8, bytes: 16 } as const;
/** struct cmsghdr: length u64, level i32 @8, type i32 @12, data @16; the next one is 8-aligned. */
const CMSG = { length64: 0, level32: 8, type32: 12, data: 16, align: 8 } as const;

const socketpairCall = bindLibc<(domain: number, type: number, protocol: number, pair: Int32Array) => number>(
  'socketpair',
  'int',
  ['int', 'int', 'int', 'void *'],
);
const bindCall = bindLibc<(fd: number, address: Uint8Array, length: number) => number>('bind', 'int', [
  'int',
  'void *',
  'uint',
]);
const listenCall = bindLibc<(fd: number, backlog: number) => number>('listen', 'int', ['int', 'int']);
const accept4Call = bindLibc<(fd: number, address: null, length: null, flags: number) => number>(
  'accept4',
  'int',
  ['int', 'void *', 'void *', 'int'],
);
const sendmsgCall = bindLibc<(fd: number, message: DataView, flags: number) => number>('sendmsg', 'long', [
  'int',
  'void *',
  'int',
]);
const recvmsgCall = bindLibc<(fd: number, message: DataView, flags: number) => number>('recvmsg', 'long', [
  'int',
  'void *',
  'int',
]);

/**
 * The headers of every call, made once: they hold addresses, and a buffer of this module's cannot be collected
 * while a call uses it.
 */
const header = new DataView(new ArrayBuffer(MSGHDR.bytes + IOVEC.bytes));
const control = new DataView(new ArrayBuffer(CMSG.data + alignControl(4 * passedFdsMax)));
const iovecAddress = BigInt(addressOf(header) + MSGHDR.bytes);
const controlAddress = BigInt(addressOf(control));

export interface ReceivedMessage {
  /** Bytes put into the buffer; 0: the peer has closed, nothing comes any more. */
  readonly length: number;
  /** Close-on-exec descriptors, which now belong to the caller. */
  readonly fds: readonly number[];
}

/** Two connected sockets. */
export function socketPair(): [number, number] {
  const pair = new Int32Array(new ArrayBuffer(8));
  check(socketpairCall(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 'socketpair');
  return [pair[0], pair[1]];
}

/** Connects to a listener. Throws SYSTEM_CALL; its errno EAGAIN means that the listener's backlog is full. */
export function connectUnix(address: string): number {
  const encoded = encodeAddress(address);
  const fd = openSocket();
  if (connectCall(fd, encoded, encoded.length) < 0) {
    const code = errno();
    closeFd(fd);
    throw systemCallError('connect', code, address);
  }
  return fd;
}

/** A socket that listens at an address, and the owner of the path it made there. */
export class UnixListener {
  readonly fd: number;
  readonly address: string;
  readonly #inode: bigint | undefined;

  /** Takes over a socket that listens already, such as one that a service manager has passed. Throws INVALID_ARGUMENT. */
  static adopt(fd: number): UnixListener {
    if (socketOption(fd, SO_ACCEPTCONN) <= 0) {
      throw new VduseError('INVALID_ARGUMENT', `descriptor ${fd} is no socket that listens`);
    }
    setNonBlocking(fd);
    return new UnixListener(`fd:${fd}`, { fd });
  }

  /**
   * `mode` is the socket file's: connecting takes write permission. A socket file that nobody listens on, left
   * behind by a process that died, is replaced; anything else at the path is an error.
   */
  constructor(address: string, options: { mode?: number; fd?: number } = {}) {
    this.address = address;
    if (options.fd !== undefined) {
      this.fd = options.fd;
      return;
    }
    this.fd = openSocket();
    try {
      // Before bind(): the file comes into being with this mode, so there is no moment with another one.
      fchmodSync(this.fd, options.mode ?? 0o600);
      bindTo(this.fd, address);
      check(listenCall(this.fd, BACKLOG), 'listen', address);
      this.#inode = isAbstract(address) ? undefined : lstatSync(address, { bigint: true }).ino;
    } catch (error) {
      closeFd(this.fd);
      throw error;
    }
  }

  /** The next connection, or undefined if none waits. */
  accept(): number | undefined {
    for (let aborted = 0; aborted < ABORTED_MAX; aborted++) {
      const fd = accept4Call(this.fd, null, null, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd >= 0) {
        return fd;
      }
      const code = errno();
      if (code === Errno.EAGAIN) {
        return undefined;
      }
      if (code !== Errno.EINTR && code !== ECONNABORTED) {
        throw systemCallError('accept4', code, this.address);
      }
    }
    return undefined;
  }

  /** Stops listening and removes the socket file, unless another one has taken its place. */
  close(): void {
    if (this.#inode !== undefined) {
      const now = lstatSync(this.address, { bigint: true, throwIfNoEntry: false });
      if (now?.ino === this.#inode) {
        unlinkSync(this.address);
      }
    }
    closeFd(this.fd);
  }
}

/**
 * Removes a socket file that nobody listens on. Does nothing where there is no file; throws BUSY where somebody
 * listens and ALREADY_EXISTS where the file is no socket.
 */
export function removeStaleSocket(path: string): void {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) {
    return;
  }
  if (!found.isSocket()) {
    throw new VduseError('ALREADY_EXISTS', `${path}: it exists and is not a socket`, {
      hint: 'Choose another path, or move the file away.',
    });
  }
  const encoded = encodeAddress(path);
  const fd = openSocket();
  const code = connectCall(fd, encoded, encoded.length) < 0 ? errno() : 0;
  closeFd(fd);
  // EAGAIN: somebody listens and has no time. EPROTOTYPE: its messages are of another type.
  if (code === 0 || code === Errno.EAGAIN || code === Errno.EPROTOTYPE) {
    throw new VduseError('BUSY', `${path}: another process listens there`, {
      hint: `Choose another path, or end that process: \`ss -xap src ${path}\` names it.`,
    });
  }
  if (code !== ECONNREFUSED) {
    throw systemCallError('connect', code, path);
  }
  unlinkSync(path);
}

/**
 * Sends bytes, and descriptors with the first of them. Returns how many bytes went; 0 if the peer does not
 * read, and then the descriptors did not go either. After a short count the caller sends the rest without the
 * descriptors. The caller keeps its descriptors.
 */
export function sendMessage(fd: number, bytes: Uint8Array, fds: readonly number[] = []): number {
  assert(bytes.length > 0, 'descriptors travel with a byte');
  assert(fds.length <= passedFdsMax, `at most ${passedFdsMax} descriptors go with one message`);
  fillHeader(bytes, encodeRights(fds));
  for (;;) {
    const sent = sendmsgCall(fd, header, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
      // Also the use of `bytes` that keeps it from being collected during the call.
      assert(sent <= bytes.length, 'no more is sent than was given');
      return sent;
    }
    const code = errno();
    if (code === Errno.EAGAIN) {
      return 0;
    }
    if (code !== Errno.EINTR) {
      throw systemCallError('sendmsg', code);
    }
  }
}

/**
 * Receives at most a buffer's length, and the descriptors that came with it; undefined if nothing is there yet.
 * More descriptors than `fdsMax`, or than the process may open, are a PROTOCOL error: those that arrived are
 * closed, and the message is lost.
 */
export function receiveMessage(fd: number, buffer: Uint8Array, fdsMax: number): ReceivedMessage | undefined {
  assert(buffer.length > 0, 'an empty buffer could not tell nothing from the end');
  assert(fdsMax >= 0 && fdsMax <= passedFdsMax, `fdsMax is 0 to ${passedFdsMax}`);
  // Not aligned at its end: an odd count would leave room for one descriptor more.
  fillHeader(buffer, fdsMax === 0 ? 0 : CMSG.data + 4 * fdsMax);
  for (;;) {
    const length = recvmsgCall(fd, header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (length >= 0) {
      assert(length <= buffer.length, 'no more is received than fits');
      return received(length, fdsMax);
    }
    const code = errno();
    if (code === Errno.EAGAIN) {
      return undefined;
    }
    if (code !== Errno.EINTR) {
      throw systemCallError('recvmsg', code);
    }
  }
}

function received(length: number, fdsMax: number): ReceivedMessage {
  const fds = decodeRights(Number(header.getBigUint64(MSGHDR.controllen64, true)));
  if ((header.getInt32(MSGHDR.flags32, true) & MSG_CTRUNC) !== 0) {
    for (const fd of fds) {
      closeFd(fd);
    }
    const reason =
      fds.length < fdsMax ? 'the process may not open that many' : `at most ${fdsMax} are accepted`;
    throw new VduseError('PROTOCOL', `a message came with too many descriptors: ${reason}`);
  }
  return { length, fds };
}

/** Puts one SCM_RIGHTS message into `control`, or none; returns its length. */
function encodeRights(fds: readonly number[]): number {
  if (fds.length === 0) {
    return 0;
  }
  const length = CMSG.data + 4 * fds.length;
  control.setBigUint64(CMSG.length64, BigInt(length), true);
  control.setInt32(CMSG.level32, SOL_SOCKET, true);
  control.setInt32(CMSG.type32, SCM_RIGHTS, true);
  for (const [index, fd] of fds.entries()) {
    control.setInt32(CMSG.data + 4 * index, fd, true);
  }
  return length;
}

/** The descriptors of the SCM_RIGHTS messages in the first `filled` bytes of `control`. */
function decodeRights(filled: number): number[] {
  const fds: number[] = [];
  const end = Math.min(filled, control.byteLength);
  for (let offset = 0; offset + CMSG.data <= end; ) {
    const length = Number(control.getBigUint64(offset + CMSG.length64, true));
    if (length < CMSG.data || length > end - offset) {
      break;
    }
    const level = control.getInt32(offset + CMSG.level32, true);
    if (level === SOL_SOCKET && control.getInt32(offset + CMSG.type32, true) === SCM_RIGHTS) {
      for (let at = CMSG.data; at + 4 <= length; at += 4) {
        fds.push(control.getInt32(offset + at, true));
      }
    }
    offset += alignControl(length);
  }
  return fds;
}

function alignControl(length: number): number {
  return (length + CMSG.align - 1) & ~(CMSG.align - 1);
}

function fillHeader(bytes: Uint8Array, controlLength: number): void {
  header.setBigUint64(MSGHDR.iov64, iovecAddress, true);
  header.setBigUint64(MSGHDR.iovlen64, 1n, true);
  header.setBigUint64(MSGHDR.control64, controlLength === 0 ? 0n : controlAddress, true);
  header.setBigUint64(MSGHDR.controllen64, BigInt(controlLength), true);
  header.setInt32(MSGHDR.flags32, 0, true);
  header.setBigUint64(IOVEC.base64, BigInt(addressOf(bytes)), true);
  header.setBigUint64(IOVEC.length64, BigInt(bytes.length), true);
}

function openSocket(): number {
  return check(socketCall(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), 'socket', '(unix)');
}

function isAbstract(address: string): boolean {
  return address.startsWith('@');
}

/** With the path and its NUL, or a NUL and the abstract name. */
function encodeAddress(address: string): Uint8Array {
  const name = Buffer.from(isAbstract(address) ? `\0${address.slice(1)}` : `${address}\0`);
  const inside = isAbstract(address) ? name.subarray(1) : name.subarray(0, -1);
  if (inside.length === 0 || name.length > unixPathBytesMax || inside.includes(0)) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `socket address ${JSON.stringify(address)}: it must have 1 to ${unixPathBytesMax - 1} bytes and no NUL`,
      { hint: 'Use a shorter path, for example one relative to the current directory.' },
    );
  }
  return sockaddrUn(name);
}

function bindTo(fd: number, address: string): void {
  const encoded = encodeAddress(address);
  if (bindCall(fd, encoded, encoded.length) === 0) {
    return;
  }
  const code = errno();
  if (code !== EADDRINUSE || isAbstract(address)) {
    throw systemCallError('bind', code, address);
  }
  removeStaleSocket(address);
  check(bindCall(fd, encoded, encoded.length), 'bind', address);
}
