/** What sockets of every family take: calls of libc, and numbers that are the same on all of Linux's 64-bit machines. */
import { bindLibc, errno } from './ffi.js';

export const AF_UNIX = 1;
export const SOCK_STREAM = 1;
export const SOCK_RAW = 3;
export const SOCK_NONBLOCK = 0o4000;
export const SOCK_CLOEXEC = 0o2000000;
export const SOL_SOCKET = 1;

/** sun_path, with the NUL that ends a path or starts an abstract name. */
export const unixPathBytesMax = 108;

export const socketCall = bindLibc<(domain: number, type: number, protocol: number) => number>(
  'socket',
  'int',
  ['int', 'int', 'int'],
);
export const connectCall = bindLibc<(fd: number, address: Uint8Array, length: number) => number>(
  'connect',
  'int',
  ['int', 'void *', 'uint'],
);
export const setsockoptCall = bindLibc<
  (fd: number, level: number, name: number, value: Int32Array, length: number) => number
>('setsockopt', 'int', ['int', 'int', 'int', 'void *', 'uint']);
const getsockoptCall = bindLibc<
  (fd: number, level: number, name: number, value: Int32Array, length: Uint32Array) => number
>('getsockopt', 'int', ['int', 'int', 'int', 'void *', 'void *']);

/** A number among the options of the socket layer, or a negative errno. */
export function socketOption(fd: number, name: number): number {
  const value = new Int32Array(new ArrayBuffer(4));
  const length = new Uint32Array(new ArrayBuffer(4));
  length[0] = 4;
  return getsockoptCall(fd, SOL_SOCKET, name, value, length) < 0 ? -errno() : value[0];
}

/** struct sockaddr_un: family u16, then what goes into sun_path, which fits. */
export function sockaddrUn(name: Uint8Array): Uint8Array {
  const encoded = new Uint8Array(new ArrayBuffer(2 + name.length));
  encoded[0] = AF_UNIX;
  encoded.set(name, 2);
  return encoded;
}
