/**
 * Clusters and images, opened, asked and closed without holding the event loop up. Calls that block go to libuv's
 * threads, a few at a time: a cluster that hangs must leave threads for the rest of the process.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { Errno } from './errno.js';
import { bindLibc, viewMemory } from './ffi.js';
import { type BlockingCall, loadLibrados, loadLibrbd, PointerOut } from './librbd.js';

const stringLength = bindLibc<(address: number, max: number) => number>('strnlen', 'size_t', [
  'uintptr_t',
  'size_t',
]);

/** Of the four threads that libuv has, and that files and name look-ups share. */
const blockingCallsMax = 2;
let blockingCalls = 0;
const waiting: (() => void)[] = [];

/** Runs a call on another thread. Resolves with its result, 0 or a negative errno. */
async function runBlocking<A extends unknown[]>(call: BlockingCall<A>, ...args: A): Promise<number> {
  while (blockingCalls >= blockingCallsMax) {
    await new Promise<void>((free) => waiting.push(free));
  }
  blockingCalls++;
  try {
    return await new Promise<number>((resolve, reject) => {
      call.async(...args, (error, result) => (error === null ? resolve(result) : reject(error)));
    });
  } finally {
    blockingCalls--;
    waiting.shift()?.();
  }
}

/** How often an operation that has no event is looked at: soon at first, then less often. */
const pollMsMin = 1;
const pollMsMax = 50;

/** Starts an asynchronous operation of librbd and waits for its end, which holds no thread however long it takes. */
async function awaitCompletion(start: (completion: number) => number): Promise<number> {
  const library = loadLibrbd();
  const out = new PointerOut();
  const created = library.createCompletion(0, 0, out.address);
  if (created < 0) {
    return created;
  }
  const completion = out.value;
  const started = start(completion);
  if (started < 0) {
    library.release(completion);
    return started;
  }
  for (let ms = pollMsMin; library.isComplete(completion) === 0; ms = Math.min(ms * 2, pollMsMax)) {
    await sleep(ms);
  }
  const result = library.returnValue(completion);
  library.release(completion);
  return result;
}

/** Makes a cluster handle; `connectCluster` connects it. Returns its address or a negative errno. */
export function createCluster(user: string | undefined): number {
  const out = new PointerOut();
  const result = loadLibrados().create(out.words, user ?? null);
  return result < 0 ? result : out.value;
}

/** Reads a configuration file, or those at the usual places. */
export function readClusterConfiguration(cluster: number, path: string | undefined): Promise<number> {
  return runBlocking(loadLibrados().readConfigurationFile, cluster, path ?? null);
}

export function setClusterOption(cluster: number, name: string, value: string): number {
  return loadLibrados().setOption(cluster, name, value);
}

const optionBytesMax = 256;

/** The option's value, or undefined where librados has none of this name. */
export function clusterOption(cluster: number, name: string): string | undefined {
  const buffer = new Uint8Array(new ArrayBuffer(optionBytesMax));
  return loadLibrados().getOption(cluster, name, buffer, optionBytesMax) < 0 ? undefined : textOf(buffer);
}

/** Bounded by the cluster's option client_mount_timeout. */
export function connectCluster(cluster: number): Promise<number> {
  return runBlocking(loadLibrados().connect, cluster);
}

export async function shutDownCluster(cluster: number): Promise<void> {
  await runBlocking(loadLibrados().shutdown, cluster);
}

/** A pool with a namespace of it. Returns its address or a negative errno. */
export async function openPool(cluster: number, pool: string, namespace: string): Promise<number> {
  const out = new PointerOut();
  const library = loadLibrados();
  const result = await runBlocking(library.createIoContext, cluster, pool, out.words);
  if (result < 0) {
    return result;
  }
  library.setNamespace(out.value, namespace);
  return out.value;
}

export function closePool(pool: number): void {
  loadLibrados().destroyIoContext(pool);
}

/** Makes an image with objects of 2^order bytes; 0: as the configuration has them. Returns 0 or a negative errno. */
export function createPoolImage(
  pool: number,
  image: { readonly name: string; readonly size: number; readonly order: number },
): Promise<number> {
  const order = Int32Array.from([image.order]);
  return runBlocking(loadLibrbd().create, pool, image.name, image.size, order);
}

export function removePoolImage(pool: number, name: string): Promise<number> {
  return runBlocking(loadLibrbd().remove, pool, name);
}

export interface ImageChoice {
  readonly name: string;
  readonly snapshot: string | undefined;
  readonly readOnly: boolean;
}

/** Returns the image's address or a negative errno. */
export async function openImage(pool: number, choice: ImageChoice): Promise<number> {
  const library = loadLibrbd();
  const out = new PointerOut();
  const { name, snapshot, readOnly } = choice;
  const result = await awaitCompletion((completion) =>
    readOnly
      ? library.openReadOnly(pool, name, out.words, snapshot ?? null, completion)
      : library.open(pool, name, out.words, null, completion),
  );
  return result < 0 ? result : out.value;
}

/** Waits for what is in flight. */
export function closeImage(image: number): Promise<number> {
  return awaitCompletion((completion) => loadLibrbd().close(image, completion));
}

/** rbd_image_info_t: size u64 @0, obj_size u64 @8; the rest is not wanted here. */
const imageInfoBytes = 256;

export interface ImageGeometry {
  /** Bytes. */
  readonly size: number;
  readonly objectSize: number;
}

export async function imageGeometry(image: number): Promise<ImageGeometry | number> {
  const info = new DataView(new ArrayBuffer(imageInfoBytes));
  const result = await runBlocking(loadLibrbd().stat, image, info, imageInfoBytes);
  if (result < 0) {
    return result;
  }
  return { size: Number(info.getBigUint64(0, true)), objectSize: Number(info.getBigUint64(8, true)) };
}

/** The size that the image has now, whoever changed it, in bytes; or a negative errno. */
export async function imageSize(image: number): Promise<number> {
  const out = new PointerOut();
  const result = await runBlocking(loadLibrbd().size, image, out.words);
  return result < 0 ? result : out.value;
}

/** Bits of an image's features (RBD_FEATURE_*). */
export const ImageFeature = { EXCLUSIVE_LOCK: 4 } as const;

/** The low 32 feature bits, or a negative errno. */
export async function imageFeatures(image: number): Promise<number> {
  const out = new PointerOut();
  const result = await runBlocking(loadLibrbd().features, image, out.words);
  return result < 0 ? result : out.words[0];
}

const imageIdBytesMax = 256;

/** The id that names the image's objects, or a negative errno. */
export async function imageId(image: number): Promise<string | number> {
  const buffer = new Uint8Array(new ArrayBuffer(imageIdBytesMax));
  const result = await runBlocking(loadLibrbd().id, image, buffer, imageIdBytesMax);
  return result < 0 ? result : textOf(buffer);
}

export function resizeImage(image: number, size: number): Promise<number> {
  return runBlocking(loadLibrbd().resize, image, size);
}

const EVENT_TYPE_EVENTFD = 2;

/** Makes librbd signal an eventfd for each completion of the image. */
export function setImageNotification(image: number, fd: number): number {
  return loadLibrbd().setNotification(image, fd, EVENT_TYPE_EVENTFD);
}

const LOCK_MODE_EXCLUSIVE = 0;
/** An exclusive lock has one owner. */
const lockOwnersMax = 4;
const addressBytesMax = 256;

/** The network address of the exclusive lock's owner; undefined for nobody, or a negative errno. */
export async function lockOwner(image: number): Promise<string | undefined | number> {
  const library = loadLibrbd();
  const mode = new Uint32Array(new ArrayBuffer(4));
  const owners = new Uint32Array(new ArrayBuffer(8 * lockOwnersMax));
  const count = new PointerOut();
  count.words[0] = lockOwnersMax;
  const result = await runBlocking(library.lockOwners, image, mode, owners, count.words);
  if (result === -Errno.ENOENT || (result === 0 && count.value === 0)) {
    return undefined;
  }
  if (result < 0) {
    return result;
  }
  const address = textAt(owners[0] + owners[1] * 0x1_0000_0000, addressBytesMax);
  library.lockOwnersCleanup(owners, count.value);
  return address;
}

/** rbd_image_watcher_t: address as char * @0, client id i64 @8, cookie u64 @16. */
const watcherBytes = 24;
const watchersMax = 256;

/** The ids of the clients at an address that watch the image, as all do that may write to it. Or a negative errno. */
export async function watchingClients(image: number, address: string): Promise<number[] | number> {
  const library = loadLibrbd();
  const buffer = new DataView(new ArrayBuffer(watcherBytes * watchersMax));
  const count = new PointerOut();
  count.words[0] = watchersMax;
  const result = await runBlocking(library.watchers, image, buffer, count.words);
  if (result < 0) {
    return result;
  }
  const clients: number[] = [];
  for (let n = 0; n < count.value; n++) {
    const text = textAt(Number(buffer.getBigUint64(n * watcherBytes, true)), addressBytesMax);
    if (text === address) {
      clients.push(Number(buffer.getBigInt64(n * watcherBytes + 8, true)));
    }
  }
  library.watchersCleanup(buffer, count.value);
  return clients;
}

/** Takes the lock from an owner, who is shut out of the cluster before (rbd_blocklist_on_break_lock). */
export function breakLock(image: number, owner: string): Promise<number> {
  return runBlocking(loadLibrbd().lockBreak, image, LOCK_MODE_EXCLUSIVE, owner);
}

/** Takes the lock and keeps it: other clients' requests for it are refused from then on. */
export function acquireLock(image: number): Promise<number> {
  return runBlocking(loadLibrbd().lockAcquire, image, LOCK_MODE_EXCLUSIVE);
}

/**
 * Which clients that watch an object answer a notification in time, by client id. An empty notification on an
 * image's header asks librbd to look at the header again, which does no harm.
 */
export async function answeringClients(
  pool: number,
  object: string,
  timeoutMs: number,
): Promise<ReadonlySet<number> | number> {
  const library = loadLibrados();
  const reply = new PointerOut();
  const length = new PointerOut();
  const result = await runBlocking(
    library.notify,
    pool,
    object,
    null,
    0,
    timeoutMs,
    reply.words,
    length.words,
  );
  if (reply.value === 0) {
    return result < 0 ? result : new Set();
  }
  try {
    const view = new DataView(viewMemory(reply.value, length.value));
    return readAcknowledgements(view);
  } finally {
    library.freeBuffer(reply.value);
  }
}

/** librados.h, rados_notify2: le32 count, then for each le64 client id, le64 cookie, le32 length and a payload. */
function readAcknowledgements(view: DataView): Set<number> {
  const clients = new Set<number>();
  const count = view.getUint32(0, true);
  let at = 4;
  for (let n = 0; n < count && at + 20 <= view.byteLength; n++) {
    clients.add(Number(view.getBigUint64(at, true)));
    at += 20 + view.getUint32(at + 16, true);
  }
  return clients;
}

function textOf(buffer: Uint8Array): string {
  const end = buffer.indexOf(0);
  return new TextDecoder().decode(buffer.subarray(0, end < 0 ? buffer.length : end));
}

/** The C string at an address, copied. */
function textAt(address: number, bytesMax: number): string {
  const bytes = new Uint8Array(viewMemory(address, stringLength(address, bytesMax)));
  return new TextDecoder().decode(bytes.slice());
}
