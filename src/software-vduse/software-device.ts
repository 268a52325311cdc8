/**
 * One VDUSE device in software: the same state, messages and rules as in Linux. device-ioctls.ts has the
 * device's side of it, VdpaDevice is what the vDPA bus asks of it.
 */

import { closeFd, createEventFd, drainEventFd, duplicateFd, signalEventFd } from '../native/fd.js';
import { VduseRequestType } from '../native/vduse-abi.js';
import type { DeviceConfigQuestion } from '../native/vduse-abi-driver.js';
import type { IotlbMap } from './iotlb.js';
import { IovaDomain } from './iova-domain.js';
import { MessageQueue } from './message-queue.js';
import type { VduseTrace } from './trace.js';
import type { VdpaDevice } from './vdpa-device.js';

/** Virtio 2.1: DRIVER_OK. */
const statusDriverOk = 4;
const addressLast = 0xffff_ffff_ffff_ffffn;

export class SoftwareQueue {
  sizeMax = 0;
  size = 0;
  descriptorAddress = 0;
  driverAddress = 0;
  deviceAddress = 0;
  availIndex = 0;
  ready = false;
  group = 0;
  /** A kick came before there was an eventfd for it. */
  kicked = false;
  /** The device's kick eventfd, a descriptor of our own; -1 for none. */
  kickFd = -1;
  /** The driver's call eventfd, a descriptor of our own: the driver may close its own any time. -1 for none. */
  callFd = -1;
  /** Call eventfds of resets that the device did not agree to: its queues may signal them until it is destroyed. */
  readonly #abandoned: number[] = [];

  setKickFd(fd: number): void {
    if (this.kickFd >= 0) {
      closeFd(this.kickFd);
    }
    this.kickFd = fd;
    if (this.ready && this.kicked && fd >= 0) {
      this.kicked = false;
      signalEventFd(fd);
    }
  }

  setCallFd(fd: number): void {
    const own = fd < 0 ? -1 : duplicateFd(fd);
    if (this.callFd >= 0) {
      closeFd(this.callFd);
    }
    this.callFd = own;
  }

  kick(): void {
    if (!this.ready) {
      return;
    }
    if (this.kickFd >= 0) {
      signalEventFd(this.kickFd);
    } else {
      this.kicked = true;
    }
  }

  /** `stopped`: the device has agreed to the reset and does not touch the queue any more. */
  reset(options: { readonly stopped: boolean }): void {
    this.size = 0;
    this.descriptorAddress = 0;
    this.driverAddress = 0;
    this.deviceAddress = 0;
    this.availIndex = 0;
    this.ready = false;
    this.kicked = false;
    this.setKickFd(-1);
    if (!options.stopped && this.callFd >= 0) {
      this.#abandoned.push(this.callFd);
      this.callFd = -1;
    }
    this.setCallFd(-1);
  }

  /** Frees what is left. Nobody has the device open. */
  destroy(): void {
    this.reset({ stopped: true });
    for (const fd of this.#abandoned.splice(0)) {
      closeFd(fd);
    }
  }
}

export interface SoftwareDeviceOptions {
  readonly question: DeviceConfigQuestion;
  readonly apiVersion: number;
  readonly timeoutMs: number;
  readonly bounceBytes: number;
  readonly trace?: VduseTrace | undefined;
}

export class SoftwareDevice implements VdpaDevice {
  readonly name: string;
  readonly deviceId: number;
  readonly vendorId: number;
  readonly deviceFeatures: bigint;
  readonly apiVersion: number;
  readonly queues: readonly SoftwareQueue[];
  readonly config: Uint8Array;
  readonly groupCount: number;
  readonly messages: MessageQueue;
  /** Signalled while a message waits to be read: what `poll` of the device's node says. */
  readonly readyFd = createEventFd();
  readonly #bounceBytes: number;
  readonly #trace: VduseTrace | undefined;
  driverFeatures = 0n;
  status = 0;
  generation = 0;
  /** The process's side has it open. */
  connected = false;
  /** It is on the vDPA bus. */
  onBus = false;
  /** User memory that replaces the bounce region: its address, 0 for none. */
  userMemory = 0;
  #domain: IovaDomain | undefined;
  #onConfigChange: (() => void) | undefined;

  constructor(options: SoftwareDeviceOptions) {
    const { question } = options;
    this.name = question.name;
    this.deviceId = question.deviceId;
    this.vendorId = question.vendorId;
    this.deviceFeatures = question.features;
    this.apiVersion = options.apiVersion;
    this.config = question.config;
    this.groupCount = Math.max(1, question.groupCount);
    this.queues = Array.from({ length: question.queueCount }, () => new SoftwareQueue());
    this.#bounceBytes = options.bounceBytes;
    this.#trace = options.trace;
    this.messages = new MessageQueue({
      timeoutMs: options.timeoutMs,
      trace: options.trace,
      onReadable: () => signalEventFd(this.readyFd),
    });
  }

  /** Undefined until the device was on the bus once. */
  get domain(): IovaDomain | undefined {
    return this.#domain;
  }

  get queueCount(): number {
    return this.queues.length;
  }

  /** Every queue has been set up by the device. */
  get isReady(): boolean {
    return this.queues.every((queue) => queue.sizeMax > 0);
  }

  /** The node became readable or not: after each read and each new message. */
  updateReadiness(): void {
    if (!this.messages.hasUnread) {
      drainEventFd(this.readyFd);
    }
  }

  /** The process has closed the node. */
  disconnect(): void {
    this.connected = false;
    this.releaseUserMemory();
    this.messages.reopen();
    if (this.messages.hasUnread) {
      signalEventFd(this.readyFd);
    }
  }

  releaseUserMemory(): void {
    if (this.userMemory !== 0) {
      this.#domain?.restoreBounce();
      this.userMemory = 0;
    }
  }

  /** Frees everything. The device is neither open nor on the bus. */
  destroy(): void {
    this.messages.close();
    for (const queue of this.queues) {
      queue.destroy();
    }
    this.#domain?.close();
    closeFd(this.readyFd);
  }

  interruptQueue(index: number): void {
    const queue = this.queues[index];
    if (queue.ready && queue.callFd >= 0) {
      signalEventFd(queue.callFd);
    }
  }

  interruptConfig(): void {
    const callback = this.#onConfigChange;
    if (callback !== undefined) {
      setImmediate(callback);
    }
  }

  get messageTimeoutMs(): number {
    return this.messages.timeoutMs;
  }

  get isDriverOk(): boolean {
    return (this.status & statusDriverOk) !== 0;
  }

  // VdpaDevice

  openDomain(): IovaDomain {
    this.#domain ??= new IovaDomain(this.#bounceBytes, this.#trace);
    return this.#domain;
  }

  queueSizeMax(index: number): number {
    return this.queues[index].sizeMax;
  }

  setDriverFeatures(features: bigint): void {
    this.driverFeatures = features;
  }

  setQueue(
    index: number,
    queue: { size: number; descriptorAddress: number; driverAddress: number; deviceAddress: number },
  ): void {
    Object.assign(this.queues[index], queue);
  }

  setQueueReady(index: number, ready: boolean): void {
    this.queues[index].ready = ready;
  }

  setQueueCall(index: number, fd: number): void {
    this.queues[index].setCallFd(fd);
  }

  setQueueState(index: number, availIndex: number): void {
    this.queues[index].availIndex = availIndex;
  }

  async queueState(index: number): Promise<number | undefined> {
    const response = await this.messages.send(VduseRequestType.GET_VQ_STATE, (body) =>
      body.setUint32(0, index, true),
    );
    return response === undefined ? undefined : new DataView(response.buffer).getUint16(28, true);
  }

  kick(index: number): void {
    this.queues[index].kick();
  }

  setConfigCallback(callback: (() => void) | undefined): void {
    this.#onConfigChange = callback;
  }

  async setStatus(status: number): Promise<boolean> {
    const accepted = await this.#sendStatus(status);
    if (accepted) {
      this.status = status;
    }
    return accepted;
  }

  /** As in Linux, the device is reset whatever the process answers. */
  async reset(): Promise<boolean> {
    const accepted = await this.#sendStatus(0);
    this.#domain?.resetBounce();
    this.status = 0;
    this.driverFeatures = 0n;
    this.generation++;
    this.#onConfigChange = undefined;
    for (const queue of this.queues) {
      queue.reset({ stopped: accepted });
    }
    return accepted;
  }

  async setMaps(maps: readonly IotlbMap[]): Promise<boolean> {
    const domain = this.openDomain();
    domain.setMaps(maps);
    const accepted = await this.updateIotlb(0n, addressLast);
    if (!accepted) {
      domain.setMaps([]);
    }
    return accepted;
  }

  /** Tells the process that a range of the memory map has changed. */
  async updateIotlb(start: bigint, last: bigint): Promise<boolean> {
    const response = await this.messages.send(VduseRequestType.UPDATE_IOTLB, (body) => {
      body.setBigUint64(0, start, true);
      body.setBigUint64(8, last, true);
    });
    return response !== undefined;
  }

  async #sendStatus(status: number): Promise<boolean> {
    const response = await this.messages.send(VduseRequestType.SET_STATUS, (body) =>
      body.setUint8(0, status),
    );
    return response !== undefined;
  }
}
