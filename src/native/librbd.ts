/**
 * librados and librbd (Ceph's own client libraries) through FFI, loaded when they are first wanted. Handles are
 * addresses; results are 0, a count or a negative errno. What may block has an `.async` form, which the control side
 * (librbd-control.ts) uses; the data side takes the calls that only queue work.
 */
import koffi from 'koffi';
import { errorMessage, VduseError } from '../base/errors.js';
import { addressOf } from './ffi.js';

type Callback = (error: unknown, result: number) => void;

/** A call that blocks: it runs on one of libuv's threads. */
export interface BlockingCall<A extends unknown[]> {
  (...args: A): number;
  async(...args: [...A, Callback]): void;
}

/** The start of an image's operation: it only queues, the completion tells the end. */
type Transfer = (image: number, offset: number, length: number, buffer: number, completion: number) => number;
type VectorTransfer = (
  image: number,
  iovecs: number,
  count: number,
  offset: number,
  completion: number,
) => number;

type Out = ArrayBufferView;

export interface Librados {
  readonly create: (cluster: Out, user: string | null) => number;
  readonly readConfigurationFile: BlockingCall<[cluster: number, path: string | null]>;
  readonly setOption: (cluster: number, name: string, value: string) => number;
  readonly getOption: (cluster: number, name: string, value: Out, length: number) => number;
  readonly connect: BlockingCall<[cluster: number]>;
  readonly shutdown: BlockingCall<[cluster: number]>;
  readonly createIoContext: BlockingCall<[cluster: number, pool: string, context: Out]>;
  readonly setNamespace: (context: number, namespace: string) => void;
  readonly destroyIoContext: (context: number) => void;
  readonly notify: BlockingCall<
    [
      context: number,
      object: string,
      payload: null,
      length: number,
      timeoutMs: number,
      reply: Out,
      replyLength: Out,
    ]
  >;
  readonly freeBuffer: (buffer: number) => void;
}

export interface Librbd {
  readonly create: BlockingCall<[context: number, name: string, size: number, order: Out]>;
  readonly remove: BlockingCall<[context: number, name: string]>;
  readonly open: (context: number, name: string, image: Out, snapshot: null, completion: number) => number;
  readonly openReadOnly: (
    context: number,
    name: string,
    image: Out,
    snapshot: string | null,
    completion: number,
  ) => number;
  readonly close: (image: number, completion: number) => number;
  readonly stat: BlockingCall<[image: number, info: Out, length: number]>;
  readonly size: BlockingCall<[image: number, size: Out]>;
  readonly features: BlockingCall<[image: number, features: Out]>;
  readonly id: BlockingCall<[image: number, id: Out, length: number]>;
  readonly resize: BlockingCall<[image: number, size: number]>;
  readonly setNotification: (image: number, fd: number, type: number) => number;
  readonly lockOwners: BlockingCall<[image: number, mode: Out, owners: Out, count: Out]>;
  readonly lockOwnersCleanup: (owners: Out, count: number) => void;
  readonly lockBreak: BlockingCall<[image: number, mode: number, owner: string]>;
  readonly lockAcquire: BlockingCall<[image: number, mode: number]>;
  readonly watchers: BlockingCall<[image: number, watchers: Out, count: Out]>;
  readonly watchersCleanup: (watchers: Out, count: number) => void;
  // The data side: called on queue threads, for each request.
  readonly pollEvents: (image: number, completions: number, count: number) => number;
  readonly createCompletion: (argument: number, callback: number, completion: number) => number;
  readonly isComplete: (completion: number) => number;
  readonly returnValue: (completion: number) => number;
  readonly argument: (completion: number) => number;
  readonly release: (completion: number) => void;
  readonly read: Transfer;
  readonly write: Transfer;
  readonly readVector: VectorTransfer;
  readonly writeVector: VectorTransfer;
  readonly flush: (image: number, completion: number) => number;
  readonly discard: (image: number, offset: number, length: number, completion: number) => number;
  readonly writeZeroes: (
    image: number,
    offset: number,
    length: number,
    completion: number,
    zeroFlags: number,
    opFlags: number,
  ) => number;
}

let librados: Librados | undefined;
let librbd: Librbd | undefined;

/** Throws NOT_SUPPORTED, with what to install. */
export function loadCephLibrary(name: string): ReturnType<typeof koffi.load> {
  try {
    return koffi.load(name);
  } catch (error) {
    throw new VduseError('NOT_SUPPORTED', `cannot use Ceph RBD images: ${name} can't be loaded here`, {
      cause: errorMessage(error),
      hint: "Install Ceph's client library: apt-get install librbd1 (Debian, Ubuntu), dnf install librbd1 (Fedora, RHEL).",
    });
  }
}

/** Throws NOT_SUPPORTED on a machine that has no librados. */
export function loadLibrados(): Librados {
  librados ??= bindLibrados();
  return librados;
}

/** Throws NOT_SUPPORTED on a machine that has no librbd. */
export function loadLibrbd(): Librbd {
  librbd ??= bindLibrbd();
  return librbd;
}

function bindLibrados(): Librados {
  const library = loadCephLibrary('librados.so.2');
  const bind = <T>(name: string, result: string, parameters: string[]): T =>
    library.func(name, result, parameters) as unknown as T;
  return {
    create: bind('rados_create', 'int', ['void *', 'str']),
    readConfigurationFile: bind('rados_conf_read_file', 'int', ['uintptr_t', 'str']),
    setOption: bind('rados_conf_set', 'int', ['uintptr_t', 'str', 'str']),
    getOption: bind('rados_conf_get', 'int', ['uintptr_t', 'str', 'void *', 'size_t']),
    connect: bind('rados_connect', 'int', ['uintptr_t']),
    shutdown: bind('rados_shutdown', 'void', ['uintptr_t']),
    createIoContext: bind('rados_ioctx_create', 'int', ['uintptr_t', 'str', 'void *']),
    setNamespace: bind('rados_ioctx_set_namespace', 'void', ['uintptr_t', 'str']),
    destroyIoContext: bind('rados_ioctx_destroy', 'void', ['uintptr_t']),
    notify: bind('rados_notify2', 'int', [
      'uintptr_t',
      'str',
      'void *',
      'int',
      'uint64_t',
      'void *',
      'void *',
    ]),
    freeBuffer: bind('rados_buffer_free', 'void', ['uintptr_t']),
  };
}

function bindLibrbd(): Librbd {
  const library = loadCephLibrary('librbd.so.1');
  const bind = <T>(name: string, result: string, parameters: string[]): T =>
    library.func(name, result, parameters) as unknown as T;
  const open = ['uintptr_t', 'str', 'void *', 'str', 'uintptr_t'];
  const transfer = ['uintptr_t', 'uint64_t', 'size_t', 'uintptr_t', 'uintptr_t'];
  const vector = ['uintptr_t', 'uintptr_t', 'int', 'uint64_t', 'uintptr_t'];
  return {
    create: bind('rbd_create', 'int', ['uintptr_t', 'str', 'uint64_t', 'void *']),
    remove: bind('rbd_remove', 'int', ['uintptr_t', 'str']),
    open: bind('rbd_aio_open', 'int', open),
    openReadOnly: bind('rbd_aio_open_read_only', 'int', open),
    close: bind('rbd_aio_close', 'int', ['uintptr_t', 'uintptr_t']),
    stat: bind('rbd_stat', 'int', ['uintptr_t', 'void *', 'size_t']),
    size: bind('rbd_get_size', 'int', ['uintptr_t', 'void *']),
    features: bind('rbd_get_features', 'int', ['uintptr_t', 'void *']),
    id: bind('rbd_get_id', 'int', ['uintptr_t', 'void *', 'size_t']),
    resize: bind('rbd_resize', 'int', ['uintptr_t', 'uint64_t']),
    setNotification: bind('rbd_set_image_notification', 'int', ['uintptr_t', 'int', 'int']),
    lockOwners: bind('rbd_lock_get_owners', 'int', ['uintptr_t', 'void *', 'void *', 'void *']),
    lockOwnersCleanup: bind('rbd_lock_get_owners_cleanup', 'void', ['void *', 'size_t']),
    lockBreak: bind('rbd_lock_break', 'int', ['uintptr_t', 'int', 'str']),
    lockAcquire: bind('rbd_lock_acquire', 'int', ['uintptr_t', 'int']),
    watchers: bind('rbd_watchers_list', 'int', ['uintptr_t', 'void *', 'void *']),
    watchersCleanup: bind('rbd_watchers_list_cleanup', 'void', ['void *', 'size_t']),
    pollEvents: bind('rbd_poll_io_events', 'int', ['uintptr_t', 'uintptr_t', 'int']),
    createCompletion: bind('rbd_aio_create_completion', 'int', ['uintptr_t', 'uintptr_t', 'uintptr_t']),
    isComplete: bind('rbd_aio_is_complete', 'int', ['uintptr_t']),
    // ssize_t, which koffi does not know by name.
    returnValue: bind('rbd_aio_get_return_value', 'long', ['uintptr_t']),
    argument: bind('rbd_aio_get_arg', 'uintptr_t', ['uintptr_t']),
    release: bind('rbd_aio_release', 'void', ['uintptr_t']),
    read: bind('rbd_aio_read', 'int', transfer),
    write: bind('rbd_aio_write', 'int', transfer),
    readVector: bind('rbd_aio_readv', 'int', vector),
    writeVector: bind('rbd_aio_writev', 'int', vector),
    flush: bind('rbd_aio_flush', 'int', ['uintptr_t', 'uintptr_t']),
    discard: bind('rbd_aio_discard', 'int', ['uintptr_t', 'uint64_t', 'uint64_t', 'uintptr_t']),
    writeZeroes: bind('rbd_aio_write_zeroes', 'int', [
      'uintptr_t',
      'uint64_t',
      'size_t',
      'uintptr_t',
      'int',
      'int',
    ]),
  };
}

/** A pointer that a C function fills in. */
export class PointerOut {
  readonly words = new Uint32Array(new ArrayBuffer(8));
  readonly address = addressOf(this.words);

  get value(): number {
    return this.words[0] + this.words[1] * 0x1_0000_0000;
  }
}
