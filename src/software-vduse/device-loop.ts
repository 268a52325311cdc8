/**
 * The loop of a device whose queues run on the front-end's thread. Neither side has to be woken then: the
 * front-end runs the device when it has published requests, and is asked for used buffers in every turn.
 */
export interface DeviceLoop {
  /** Has the device look at its queues now. Not from inside a turn. */
  run(): void;
  /** Calls back in every turn, until the next call of this. The callback returns how much it found. */
  setFrontend(takeUsed: (() => number) | undefined): void;
}
