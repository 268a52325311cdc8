/** One ring as the front-end has set it up ("Ring states"), and its descriptors, which are this side's. */
import { readlinkSync } from 'node:fs';
import { VduseError } from '../../base/errors.js';
import type { QueueActivation } from '../../device/virtio-device.js';
import { closeFd, createEventFd, replaceFd, setNonBlocking, signalEventFd } from '../../native/fd.js';
import type { NotifierSpec } from '../../native/notifier.js';
import type { MemoryTable } from './memory-table.js';
import type { VringAddresses } from './request.js';

/** Throws PROTOCOL: a thread can wait for an eventfd or signal it, and on other files it might wait for ever. */
function checkEventFd(name: string, fd: number): void {
  const target = readlinkSync(`/proc/self/fd/${fd}`);
  if (target !== 'anon_inode:[eventfd]') {
    throw new VduseError('PROTOCOL', `a ring's ${name} descriptor is no eventfd but ${target}`);
  }
}

export class Vring {
  readonly index: number;
  /** Where the queue goes on. The device counts while it runs. */
  availIndex = 0;
  started = false;
  enabled = false;
  /** Whether the device has the queue. */
  running = false;
  /** No kick descriptor came: the front-end does not tell of new buffers. */
  polled = false;
  /** 0: not set yet. */
  #size = 0;
  #addresses: VringAddresses | undefined;
  #kickFd = -1;
  #callFd = -1;
  #errorFd = -1;

  constructor(index: number) {
    this.index = index;
  }

  get kickFd(): number {
    return this.#kickFd;
  }

  get isNotified(): boolean {
    return this.#callFd >= 0;
  }

  setSize(size: number): void {
    this.#checkStopped();
    this.#size = size;
  }

  /** QEMU repeats the addresses of rings that run; they are the same. */
  setAddresses(addresses: VringAddresses): void {
    const old = this.#addresses;
    const same =
      old?.descriptor === addresses.descriptor &&
      old.available === addresses.available &&
      old.used === addresses.used;
    if (!same) {
      this.#checkStopped();
      this.#addresses = addresses;
    }
  }

  setBase(availIndex: number): void {
    this.#checkStopped();
    this.availIndex = availIndex;
  }

  /** Takes the descriptor over. The queue does not run. */
  setKick(fd: number | undefined): void {
    this.#closeKick();
    this.polled = fd === undefined;
    this.#kickFd = fd ?? createEventFd();
    if (fd !== undefined) {
      checkEventFd('kick', fd);
    }
  }

  /**
   * Takes the descriptor over. A queue that runs notifies the new one from now on: it keeps its number. Without one
   * before, or from now on, the queue must not run.
   */
  setCall(fd: number | undefined): void {
    if (fd !== undefined) {
      // Or a front-end that fills its counter to the brim would stop the queue's thread, and the others' on it.
      setNonBlocking(fd);
    }
    if (this.#callFd >= 0 && fd !== undefined) {
      try {
        replaceFd(this.#callFd, fd);
      } finally {
        closeFd(fd);
      }
      return;
    }
    this.#closeCall();
    this.#callFd = fd ?? -1;
  }

  /** Takes the descriptor over, at any time: it is used by this thread alone. */
  setError(fd: number | undefined): void {
    this.#closeError();
    this.#errorFd = fd ?? -1;
    if (fd !== undefined) {
      checkEventFd('error', fd);
      // As the call descriptor: its counter may be full.
      setNonBlocking(fd);
    }
  }

  /** The ring is broken: whoever waits for errors of it is told ("VHOST_USER_SET_VRING_ERR"). */
  signalError(): void {
    if (this.#errorFd >= 0) {
      signalEventFd(this.#errorFd);
    }
  }

  /** How the queue interrupts its driver. */
  get callNotifier(): NotifierSpec {
    return this.isNotified ? { kind: 'eventfd', fd: this.#callFd } : { kind: 'none' };
  }

  /** Throws PROTOCOL where the ring is not set up as it should be. */
  activation(memory: MemoryTable): QueueActivation {
    const addresses = this.#addresses;
    if (addresses === undefined || this.#size === 0) {
      throw new VduseError('PROTOCOL', `ring ${this.index} is started before its size and addresses are set`);
    }
    return {
      index: this.index,
      size: this.#size,
      descriptorAddress: memory.guestAddressOf(addresses.descriptor),
      driverAddress: memory.guestAddressOf(addresses.available),
      deviceAddress: memory.guestAddressOf(addresses.used),
      availIndex: this.availIndex,
      kickFd: this.#kickFd,
      notifier: this.callNotifier,
    };
  }

  /** Back to the initial state. The queue does not run. */
  reset(): void {
    this.#size = 0;
    this.#addresses = undefined;
    this.availIndex = 0;
    this.started = false;
    this.enabled = false;
    this.polled = false;
    this.#closeKick();
    this.#closeCall();
    this.#closeError();
  }

  #checkStopped(): void {
    if (this.running) {
      throw new VduseError('PROTOCOL', `ring ${this.index} is set up while it runs`);
    }
  }

  #closeKick(): void {
    if (this.#kickFd >= 0) {
      closeFd(this.#kickFd);
      this.#kickFd = -1;
    }
  }

  #closeCall(): void {
    if (this.#callFd >= 0) {
      closeFd(this.#callFd);
      this.#callFd = -1;
    }
  }

  #closeError(): void {
    if (this.#errorFd >= 0) {
      closeFd(this.#errorFd);
      this.#errorFd = -1;
    }
  }
}
