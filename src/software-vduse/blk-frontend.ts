/**
 * A virtio-blk driver in software, bound to a device of the software vDPA bus as virtio-vdpa binds the
 * kernel's: the disk that appears is this object, and its requests are promises.
 */
import { VduseError } from '../base/errors.js';
import { addressOf, viewMemory } from '../native/ffi.js';
import { hasFeature, RING_F } from '../virtqueue/layout.js';
import type { DeviceLoop } from './device-loop.js';
import { FrontendQueue, type FrontendRequest, payloadSegmentsMax } from './frontend-queue.js';
import type { IovaDomain, SharedMemory } from './iova-domain.js';
import type { VdpaDevice } from './vdpa-device.js';

/** Virtio 1.3: 2.1 status bits, 5.2.3 features, 5.2.4 configuration, 5.2.6 request types. */
const STATUS = { ACKNOWLEDGE: 1, DRIVER: 2, DRIVER_OK: 4, FEATURES_OK: 8 } as const;
const BLK_F = {
  SIZE_MAX: 1,
  SEG_MAX: 2,
  RO: 5,
  BLK_SIZE: 6,
  FLUSH: 9,
  TOPOLOGY: 10,
  MQ: 12,
  DISCARD: 13,
  WRITE_ZEROES: 14,
} as const;
const BLK_T = { IN: 0, OUT: 1, FLUSH: 4, GET_ID: 8, DISCARD: 11, WRITE_ZEROES: 13 } as const;
const CONFIG = {
  capacity: 0,
  sizeMax: 8,
  segMax: 12,
  blkSize: 20,
  numQueues: 34,
  maxDiscardSectors: 36,
  maxWriteZeroesSectors: 48,
  end: 60,
} as const;
const rangeFlagUnmap = 1;
const sectorBytes = 512;
const idBytes = 20;
const blockDeviceId = 2;
/** Requests longer than this are done as several: a bounce region must have room for more than one. */
const requestBytesMax = 1 << 20;
const queueSizeMax = 256;
/** More segments than that are not worth a request. */
const segmentsMax = 62;
const pageBytes = 4096;

const ringBits = [RING_F.INDIRECT_DESC, RING_F.EVENT_IDX, RING_F.VERSION_1, RING_F.ACCESS_PLATFORM];
const knownFeatures = [...Object.values(BLK_F), ...ringBits].reduce(
  (features, bit) => features | (1n << BigInt(bit)),
  0n,
);

export interface BlkFrontendOptions {
  /** Features that are not accepted although they are known. */
  readonly refuseFeatures?: bigint;
  /** Queues to use; all that the device has when absent. */
  readonly queueCount?: number;
  /** The device's loop, where all its queues run on this thread. */
  readonly loop?: DeviceLoop;
}

/** A buffer that the device sees as it is: requests on it are not bounced. */
export interface SharedBuffer {
  readonly bytes: Uint8Array;
  readonly memory: SharedMemory;
}

export class BlkFrontend {
  readonly name: string;
  readonly features: bigint;
  readonly queueCount: number;
  readonly blockSize: number;
  readonly domain: IovaDomain;
  readonly #device: VdpaDevice;
  readonly #queues: readonly FrontendQueue[];
  readonly #requestBytesMax: number;
  readonly #loop: DeviceLoop | undefined;
  #nextQueue = 0;
  #removing = false;
  /** Called when the device says that its size is another one. */
  onResize: ((size: number) => void) | undefined;

  /** Takes a device into use: virtio 3.1.1's steps. Throws NOT_SUPPORTED or DEVICE_BROKEN; it is reset then. */
  static async probe(device: VdpaDevice, options: BlkFrontendOptions = {}): Promise<BlkFrontend> {
    if (device.deviceId !== blockDeviceId) {
      throw new VduseError('NOT_SUPPORTED', `'${device.name}' is no block device`);
    }
    await device.reset();
    let frontend: BlkFrontend | undefined;
    try {
      await setStatus(device, STATUS.ACKNOWLEDGE);
      await setStatus(device, STATUS.ACKNOWLEDGE | STATUS.DRIVER);
      const features = device.deviceFeatures & knownFeatures & ~(options.refuseFeatures ?? 0n);
      device.setDriverFeatures(features);
      await setStatus(device, STATUS.ACKNOWLEDGE | STATUS.DRIVER | STATUS.FEATURES_OK);
      frontend = new BlkFrontend(device, features, options);
      const { ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK } = STATUS;
      await setStatus(device, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
      return frontend;
    } catch (error) {
      await device.reset();
      frontend?.close();
      throw error;
    }
  }

  private constructor(device: VdpaDevice, features: bigint, options: BlkFrontendOptions) {
    this.#device = device;
    this.name = device.name;
    this.features = features;
    this.domain = device.openDomain();
    const config = this.#config();
    this.blockSize = hasFeature(features, BLK_F.BLK_SIZE)
      ? config.getUint32(CONFIG.blkSize, true)
      : sectorBytes;
    const offered = hasFeature(features, BLK_F.MQ) ? config.getUint16(CONFIG.numQueues, true) : 1;
    this.queueCount = Math.max(1, Math.min(offered, device.queueCount, options.queueCount ?? offered));
    const sizeMax = hasFeature(features, BLK_F.SIZE_MAX)
      ? config.getUint32(CONFIG.sizeMax, true)
      : requestBytesMax;
    // Whole sectors: a piece of a request is a request of its own.
    const sectors = Math.floor(Math.min(requestBytesMax, sizeMax) / sectorBytes);
    const segmentBytesMax = Math.max(1, sectors) * sectorBytes;
    this.#queues = this.#makeQueues(segmentBytesMax, options);
    this.#requestBytesMax = this.#longestRequest(segmentBytesMax, config);
    this.#loop = options.loop;
    this.#loop?.setFrontend(() => this.#takeUsed());
    device.setConfigCallback(() => this.onResize?.(this.size));
  }

  #makeQueues(segmentBytesMax: number, options: BlkFrontendOptions): readonly FrontendQueue[] {
    const queues: FrontendQueue[] = [];
    try {
      for (let index = 0; index < this.queueCount; index++) {
        queues.push(
          new FrontendQueue({
            device: this.#device,
            domain: this.domain,
            index,
            size: Math.min(queueSizeMax, this.#device.queueSizeMax(index)),
            eventIdx: hasFeature(this.features, RING_F.EVENT_IDX),
            indirect: hasFeature(this.features, RING_F.INDIRECT_DESC),
            segmentBytesMax,
            loop: options.loop,
            // All queues share the bounce region: one that has nothing in flight is woken by the others' ends.
            onEnded: () => {
              for (const queue of queues) {
                queue.startWaiting();
              }
            },
          }),
        );
      }
      return queues;
    } catch (error) {
      for (const queue of queues) {
        queue.close();
      }
      throw error;
    }
  }

  /** What fits into one chain, and twice into the bounce region: a longer request would wait for ever. */
  #longestRequest(segmentBytesMax: number, config: DataView): number {
    const indirect = hasFeature(this.features, RING_F.INDIRECT_DESC);
    const sizes = this.#queues.map(({ size }) => payloadSegmentsMax({ size, indirect }));
    const offered = hasFeature(this.features, BLK_F.SEG_MAX) ? config.getUint32(CONFIG.segMax, true) : 1;
    const segments = Math.max(1, Math.min(segmentsMax, offered, ...sizes));
    const half = Math.floor(this.domain.mapBytesMax / (2 * pageBytes)) * pageBytes;
    return Math.min(requestBytesMax, segments * segmentBytesMax, half);
  }

  /** Bytes. */
  get size(): number {
    return Number(this.#config().getBigUint64(CONFIG.capacity, true)) * sectorBytes;
  }

  get readOnly(): boolean {
    return hasFeature(this.features, BLK_F.RO);
  }

  get canFlush(): boolean {
    return hasFeature(this.features, BLK_F.FLUSH);
  }

  get canDiscard(): boolean {
    return hasFeature(this.features, BLK_F.DISCARD);
  }

  get canWriteZeroes(): boolean {
    return hasFeature(this.features, BLK_F.WRITE_ZEROES);
  }

  get inFlight(): number {
    return this.#queues.reduce((sum, queue) => sum + queue.inFlight, 0);
  }

  /** Offsets are bytes, offsets and lengths multiples of 512. The buffer must not be touched until it settles. */
  read(offset: number, buffer: Uint8Array): Promise<void> {
    return this.#transfer(BLK_T.IN, offset, buffer);
  }

  write(offset: number, data: Uint8Array): Promise<void> {
    return this.#transfer(BLK_T.OUT, offset, data);
  }

  /** Everything that was written before is durable. */
  flush(): Promise<void> {
    return this.#submit({ ...noPayload, type: BLK_T.FLUSH, sector: 0 });
  }

  discard(offset: number, length: number): Promise<void> {
    const max = this.#config().getUint32(CONFIG.maxDiscardSectors, true);
    return this.#ranges({ type: BLK_T.DISCARD, offset, length, flags: 0, max });
  }

  writeZeroes(offset: number, length: number, options: { readonly unmap: boolean }): Promise<void> {
    const max = this.#config().getUint32(CONFIG.maxWriteZeroesSectors, true);
    const flags = options.unmap ? rangeFlagUnmap : 0;
    return this.#ranges({ type: BLK_T.WRITE_ZEROES, offset, length, flags, max });
  }

  /** The serial number, of up to 20 bytes. */
  async getId(): Promise<string> {
    const buffer = new Uint8Array(new ArrayBuffer(idBytes));
    await this.#submit({
      type: BLK_T.GET_ID,
      sector: 0,
      address: addressOf(buffer),
      length: idBytes,
      direction: 'from-device',
      keep: buffer,
    });
    const end = buffer.indexOf(0);
    return new TextDecoder().decode(end < 0 ? buffer : buffer.subarray(0, end));
  }

  /** Where a queue stands, as the device says; undefined where it does not. */
  queueState(index: number): Promise<number | undefined> {
    return this.#device.queueState(index);
  }

  /** Makes memory for requests that are not to be copied. `removeSharedBuffer` frees it. */
  allocateSharedBuffer(length: number): SharedBuffer {
    const memory = this.domain.addShared(length);
    return { memory, bytes: new Uint8Array(viewMemory(memory.hostAddress, length)) };
  }

  /** No request uses the buffer any more, and nobody touches its bytes afterwards. */
  async removeSharedBuffer(buffer: SharedBuffer): Promise<void> {
    const { iova, length } = buffer.memory;
    this.domain.forgetShared(buffer.memory);
    await this.#device.updateIotlb(BigInt(iova), BigInt(iova + length - 1));
    this.domain.removeShared(buffer.memory);
  }

  /**
   * Ends the use of the device: requests in flight end first, as long as a message may wait, and new ones are
   * refused. What is left then fails.
   */
  async remove(): Promise<void> {
    this.#removing = true;
    const drained = Promise.all(this.#queues.map((queue) => queue.drained()));
    await settledWithin(drained, this.#device.messageTimeoutMs);
    this.#device.setConfigCallback(undefined);
    await this.#device.reset();
    this.close();
  }

  /** Fails what is in flight and frees the queues. The device has been reset. */
  close(): void {
    this.#loop?.setFrontend(undefined);
    for (const queue of this.#queues) {
      queue.fail();
      queue.close();
    }
  }

  #takeUsed(): number {
    let count = 0;
    for (const queue of this.#queues) {
      count += queue.takeUsed();
    }
    return count;
  }

  #config(): DataView {
    const { config } = this.#device;
    if (config.byteLength >= CONFIG.end) {
      return new DataView(config.buffer, config.byteOffset, config.byteLength);
    }
    // Fields that a device leaves out read as zeroes, as in Linux.
    const padded = new Uint8Array(CONFIG.end);
    padded.set(config);
    return new DataView(padded.buffer);
  }

  async #transfer(type: number, offset: number, buffer: Uint8Array): Promise<void> {
    checkSectors(offset, buffer.length);
    const address = addressOf(buffer);
    const direction = type === BLK_T.IN ? 'from-device' : 'to-device';
    if (buffer.length <= this.#requestBytesMax) {
      await this.#submit({
        type,
        sector: offset / sectorBytes,
        address,
        length: buffer.length,
        direction,
        keep: buffer,
      });
      return;
    }
    const parts: Promise<void>[] = [];
    for (let done = 0; done < buffer.length; done += this.#requestBytesMax) {
      const length = Math.min(this.#requestBytesMax, buffer.length - done);
      const sector = (offset + done) / sectorBytes;
      parts.push(this.#submit({ type, sector, address: address + done, length, direction, keep: buffer }));
    }
    await settleAll(parts);
  }

  async #ranges(request: {
    type: number;
    offset: number;
    length: number;
    flags: number;
    max: number;
  }): Promise<void> {
    checkSectors(request.offset, request.length);
    const parts: Promise<void>[] = [];
    const pieceBytes = Math.max(1, request.max) * sectorBytes;
    for (let done = 0; done < request.length; done += pieceBytes) {
      const sectors = Math.min(pieceBytes, request.length - done) / sectorBytes;
      const sector = (request.offset + done) / sectorBytes;
      const range = { sectors, flags: request.flags };
      parts.push(this.#submit({ ...noPayload, type: request.type, sector, range }));
    }
    await settleAll(parts);
  }

  #submit(request: FrontendRequest): Promise<void> {
    if (this.#removing) {
      return Promise.reject(new VduseError('ABORTED', `'${this.name}' is being removed`));
    }
    const queue = this.#queues[this.#nextQueue];
    this.#nextQueue = (this.#nextQueue + 1) % this.#queues.length;
    return queue.submit(request);
  }
}

const noPayload = { address: 0, length: 0, direction: 'to-device' } as const;

/** Throws INVALID_ARGUMENT: a request counts in sectors, and rounding would move data. */
function checkSectors(offset: number, length: number): void {
  const whole = Number.isSafeInteger(offset) && offset >= 0 && offset % sectorBytes === 0;
  if (!whole || !Number.isSafeInteger(length) || length < 0 || length % sectorBytes !== 0) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `${length} bytes at ${offset}: a request has whole sectors of ${sectorBytes} bytes`,
    );
  }
}

/** Resolves with the promise, or when the time is up; 0 waits for ever. */
async function settledWithin(work: Promise<unknown>, timeoutMs: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((resolve) => {
    timer = timeoutMs > 0 ? setTimeout(resolve, timeoutMs) : undefined;
  });
  await Promise.race([work, late]);
  clearTimeout(timer);
}

/** All parts end before the whole does: a buffer is its caller's again only then. */
async function settleAll(parts: readonly Promise<void>[]): Promise<void> {
  const results = await Promise.allSettled(parts);
  const failed = results.find((result) => result.status === 'rejected');
  if (failed !== undefined) {
    throw failed.reason;
  }
}

async function setStatus(device: VdpaDevice, status: number): Promise<void> {
  if (!(await device.setStatus(status))) {
    throw new VduseError('DEVICE_BROKEN', `'${device.name}' refused status 0x${status.toString(16)}`);
  }
}
