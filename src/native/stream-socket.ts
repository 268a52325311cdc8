/**
 * Stream sockets of a client, and the vectors of memory that they send and receive: no call here waits. Connecting
 * and options are for set-up; IovecMessage is for the data path, allocates nothing after construction and does not
 * throw. Layouts: struct sockaddr_in and sockaddr_in6, msghdr and iovec of 64-bit Linux.
 */
import { isIPv6 } from 'node:net';
import { Errno } from './errno.js';
import { closeFd, duplicateFd, setNonBlocking } from './fd.js';
import { bindLibc, errno, viewMemory } from './ffi.js';
import { mapAnonymous, unmap } from './memory.js';
import {
  connectCall,
  SOCK_CLOEXEC,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  SOL_SOCKET,
  setsockoptCall,
  sockaddrUn,
  socketCall,
  socketOption,
  unixPathBytesMax,
} from './socket-calls.js';

const AF_INET = 2;
const AF_INET6 = 10;
const SO_TYPE = 3;
const SO_ERROR = 4;
const SO_KEEPALIVE = 9;
const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
const TCP_KEEPIDLE = 4;
const TCP_KEEPINTVL = 5;
const TCP_KEEPCNT = 6;
const TCP_USER_TIMEOUT = 18;
const SHUT_RDWR = 2;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const EINPROGRESS = 115;

/** The kernel's UIO_MAXIOV: entries of one vector. */
const iovecsMax = 1024;
const msghdrBytes = 64;
const iovecBytes = 16;
const two32 = 0x1_0000_0000;

const getpeernameCall = bindLibc<(fd: number, address: Uint8Array, length: Uint32Array) => number>(
  'getpeername',
  'int',
  ['int', 'void *', 'void *'],
);
const shutdownCall = bindLibc<(fd: number, how: number) => number>('shutdown', 'int', ['int', 'int']);
const inetPton = bindLibc<(family: number, text: string, address: Uint8Array) => number>('inet_pton', 'int', [
  'int',
  'str',
  'void *',
]);
const sendmsgCall = bindLibc<(fd: number, message: number, flags: number) => number>('sendmsg', 'long', [
  'int',
  'uintptr_t',
  'int',
]);
const recvmsgCall = bindLibc<(fd: number, message: number, flags: number) => number>('recvmsg', 'long', [
  'int',
  'uintptr_t',
  'int',
]);

/** The struct sockaddr of an IP address, which is not a name. */
export function encodeInetAddress(ip: string, port: number): Uint8Array {
  const family = isIPv6(ip) ? AF_INET6 : AF_INET;
  const address = new Uint8Array(new ArrayBuffer(16));
  if (inetPton(family, ip, address) !== 1) {
    throw new Error(`not an IP address: ${ip}`);
  }
  const encoded = new Uint8Array(new ArrayBuffer(family === AF_INET6 ? 28 : 16));
  encoded[0] = family;
  encoded[2] = port >>> 8;
  encoded[3] = port;
  if (family === AF_INET6) {
    encoded.set(address, 8);
  } else {
    encoded.set(address.subarray(0, 4), 4);
  }
  return encoded;
}

/** The struct sockaddr of a path, or of an abstract name behind a NUL; undefined where it does not fit. */
export function encodeUnixAddress(path: string): Uint8Array | undefined {
  const name = Buffer.from(path.startsWith('\0') ? path : `${path}\0`);
  const isPath = name[0] !== 0;
  if (name.length < 2 || name.length > unixPathBytesMax || (isPath && name.indexOf(0) !== name.length - 1)) {
    return undefined;
  }
  return sockaddrUn(name);
}

/**
 * Begins to connect to a struct sockaddr. Returns a descriptor that is connected, or will be when it can be written,
 * or a negative errno. A Unix socket whose backlog is full is EAGAIN.
 */
export function startConnect(address: Uint8Array): number {
  const fd = socketCall(address[0], SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) {
    return -errno();
  }
  const code = connectCall(fd, address, address.length) < 0 ? errno() : 0;
  if (code !== 0 && code !== EINPROGRESS) {
    closeFd(fd);
    return -code;
  }
  if (address[0] === AF_INET || address[0] === AF_INET6) {
    setTcpOptions(fd);
  }
  return fd;
}

/** The pending error of a socket, positive; 0: none. */
export function takeSocketError(fd: number): number {
  const error = socketOption(fd, SO_ERROR);
  return error < 0 ? -error : error;
}

/**
 * A descriptor of our own for a connected stream socket that somebody else has opened, and that does not wait from now
 * on. Or a negative errno: ENOTSOCK, ENOTCONN, EPROTOTYPE for a socket of another type, EBADF.
 */
export function adoptConnection(fd: number): number {
  const type = socketOption(fd, SO_TYPE);
  if (type < 0) {
    return type;
  }
  if (type !== SOCK_STREAM) {
    return -Errno.EPROTOTYPE;
  }
  // struct sockaddr_storage.
  if (getpeernameCall(fd, new Uint8Array(128), Uint32Array.of(128)) < 0) {
    return -errno();
  }
  const own = duplicateFd(fd);
  setNonBlocking(own);
  setTcpOptions(own);
  return own;
}

/** Where it is TCP: requests are to leave at once, and a peer that is gone without a word is to be noticed within a minute. */
function setTcpOptions(fd: number): void {
  const set = (level: number, name: number, value: number): void => {
    setsockoptCall(fd, level, name, Int32Array.of(value), 4);
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 30);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 10);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, 60_000);
}

/** Ends a connection both ways, also where something still holds the socket, and closes the descriptor. */
export function closeSocket(fd: number): void {
  shutdownCall(fd, SHUT_RDWR);
  closeFd(fd);
}

/** A struct msghdr and its vector, filled again and again. It owns memory outside the heap. */
export class IovecMessage {
  /** Bytes of all entries. */
  bytes = 0;
  #count = 0;
  readonly #address: number;
  readonly #words: Uint32Array;

  constructor() {
    this.#address = mapAnonymous(msghdrBytes + iovecsMax * iovecBytes);
    this.#words = new Uint32Array(viewMemory(this.#address, msghdrBytes + iovecsMax * iovecBytes));
    const iovecs = this.#address + msghdrBytes;
    // msg_iov at 16, msg_iovlen at 24.
    this.#words[4] = iovecs % two32;
    this.#words[5] = Math.floor(iovecs / two32);
  }

  clear(): void {
    this.#count = 0;
    this.bytes = 0;
  }

  get isFull(): boolean {
    return this.#count === iovecsMax;
  }

  /** There must be room. */
  add(address: number, length: number): void {
    const words = this.#words;
    const at = (msghdrBytes + this.#count * iovecBytes) >> 2;
    words[at] = address % two32;
    words[at + 1] = (address / two32) >>> 0;
    words[at + 2] = length;
    words[at + 3] = 0;
    this.#count++;
    this.bytes += length;
  }

  /** Returns how many bytes went, or a negative errno. */
  send(fd: number): number {
    this.#words[6] = this.#count;
    for (let attempt = 0; attempt < attemptsMax; attempt++) {
      const sent = sendmsgCall(fd, this.#address, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent >= 0) {
        return sent;
      }
      const code = errno();
      if (code !== Errno.EINTR) {
        return -code;
      }
    }
    return -Errno.EAGAIN;
  }

  /** Returns how many bytes came, 0 at the end, or a negative errno. */
  receive(fd: number): number {
    this.#words[6] = this.#count;
    for (let attempt = 0; attempt < attemptsMax; attempt++) {
      const received = recvmsgCall(fd, this.#address, MSG_DONTWAIT);
      if (received >= 0) {
        return received;
      }
      const code = errno();
      if (code !== Errno.EINTR) {
        return -code;
      }
    }
    return -Errno.EAGAIN;
  }

  close(): void {
    unmap(this.#address, msghdrBytes + iovecsMax * iovecBytes);
  }
}

/** Times that a call is made again after a signal. */
const attemptsMax = 16;
