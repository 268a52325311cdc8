// Hot file: notify is synchronous, allocates nothing and does not throw.
/** How a queue tells its driver that buffers were used. The description is plain data and crosses threads. */
import { signalEventFd } from './fd.js';
import { libcCalls } from './ffi.js';

export type NotifierSpec =
  /** VDUSE: an ioctl of the device's descriptor injects the queue's interrupt. */
  | { readonly kind: 'vduse'; readonly fd: number; readonly index: number }
  | { readonly kind: 'eventfd'; readonly fd: number }
  /** The driver polls. */
  | { readonly kind: 'none' };

export interface Notifier {
  /** Returns false where the driver can't be interrupted now. */
  notify(): boolean;
}

/** _IOW(0x81, 0x17, u32): VDUSE_VQ_INJECT_IRQ. */
const VQ_INJECT_IRQ = 0x40048117;

class VduseNotifier implements Notifier {
  readonly #fd: number;
  readonly #index: Uint32Array;

  constructor(fd: number, index: number) {
    this.#fd = fd;
    this.#index = new Uint32Array([index]);
  }

  /**
   * VDUSE takes interrupts only while its own status has DRIVER_OK, which it sets after our answer to that
   * very step: a queue that starts with work to do can be faster.
   */
  notify(): boolean {
    return libcCalls.ioctlPointer(this.#fd, VQ_INJECT_IRQ, this.#index) >= 0;
  }
}

class EventFdNotifier implements Notifier {
  readonly #fd: number;

  constructor(fd: number) {
    this.#fd = fd;
  }

  notify(): boolean {
    signalEventFd(this.#fd);
    return true;
  }
}

export function createNotifier(spec: NotifierSpec): Notifier {
  switch (spec.kind) {
    case 'vduse':
      return new VduseNotifier(spec.fd, spec.index);
    case 'eventfd':
      return new EventFdNotifier(spec.fd);
    case 'none':
      return { notify: () => true };
  }
}
