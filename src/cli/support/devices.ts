/** The disks that this machine serves, put together from sysfs, procfs and the control sockets of exports. */
import { type Dirent, readdirSync, readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { socketOwner } from '../../native/descriptor-holders.js';
import { vdpaBusDevice, vduseDeviceHolders, vduseDevices } from '../../native/vdpa-bus.js';
import { isJsonObject } from '../../qmp/json-value.js';
import { controlSocketPath, runDirectory } from './control-socket.js';
import { queryExports } from './daemon-view.js';
import { QmpClient } from './qmp-client.js';
import { sectorBytes } from './size.js';

/** `unknown`: only root can see whether a process serves it. */
export type DeviceState = 'served' | 'left-behind' | 'unknown';

export interface DeviceSummary {
  readonly name: string;
  /** The type of its export. All VDUSE devices are told of, those of other exports only where vduse exports them. */
  readonly type: string;
  readonly state: DeviceState;
  /** Who serves it. */
  readonly pid: number | undefined;
  readonly command: string | undefined;
  /** Whether it is on the vDPA bus, and under which driver. */
  readonly attached: boolean;
  readonly driver: string | undefined;
  /** `/dev/vdX`, `/dev/vhost-vdpa-N`, or a vhost-user socket. */
  readonly path: string | undefined;
  /** Bytes, where anybody knows. */
  readonly size: number | undefined;
  readonly image: string | undefined;
  readonly readOnly: boolean | undefined;
}

/** What an export says of its one block node. */
export interface ServedNode {
  readonly nodeName: string;
  readonly image: string;
  readonly size: number;
  readonly readOnly: boolean;
}

const vduseType = 'vduse-blk';

/** A listing does not wait long for an export that is busy with another client. */
const LISTING_MS_MAX = 2000;

export function deviceExists(name: string): boolean {
  return vduseDevices().some((device) => device.name === name);
}

export async function listDevices(): Promise<DeviceSummary[]> {
  return Promise.all(vduseDevices().map((device) => describeDevice(device.name)));
}

export async function describeDevice(name: string): Promise<DeviceSummary> {
  const bus = vdpaBusDevice(name);
  const { processes, unreadable } = vduseDeviceHolders(name);
  const holder = processes[0];
  const served = await askExport(name);
  return {
    name,
    type: vduseType,
    state:
      holder !== undefined || served !== undefined ? 'served' : unreadable > 0 ? 'unknown' : 'left-behind',
    pid: holder?.pid,
    command: holder?.command,
    attached: bus !== undefined,
    driver: bus?.driver,
    path: bus?.blockDevice ?? bus?.vhostDevice,
    size: blockDeviceSize(bus?.blockDevice) ?? served?.size,
    image: served?.image,
    readOnly: served?.readOnly,
  };
}

/** What `vduse export` serves without VDUSE. */
export async function listOtherExports(): Promise<DeviceSummary[]> {
  const names = runDirectoryEntries()
    .filter((entry) => entry.isSocket() && entry.name.endsWith('.sock'))
    .map((entry) => entry.name.slice(0, -'.sock'.length))
    .filter((name) => !deviceExists(name));
  const lists = await Promise.all(names.map((name) => describeOtherExports(name)));
  return lists.flat();
}

/** None where there is no such directory, or not for this user. */
function runDirectoryEntries(): Dirent[] {
  try {
    return readdirSync(runDirectory(), { withFileTypes: true });
  } catch {
    return [];
  }
}

async function describeOtherExports(name: string): Promise<DeviceSummary[]> {
  const answer = await ask(name, async (client) => ({
    exports: await queryExports(client),
    node: await queryNode(client),
  }));
  const owner = answer === undefined ? undefined : socketOwner(controlSocketPath(name));
  return (answer?.exports ?? [])
    .filter(({ type }) => type !== vduseType)
    .map(({ type }) => ({
      name,
      type,
      state: 'served',
      pid: owner?.pid,
      command: owner?.command,
      attached: true,
      driver: undefined,
      path: owner?.otherSockets[0],
      size: answer?.node?.size,
      image: answer?.node?.image,
      readOnly: answer?.node?.readOnly,
    }));
}

/** Undefined where no export answers. */
function askExport(name: string): Promise<ServedNode | undefined> {
  return ask(name, queryNode);
}

async function ask<T>(name: string, question: (client: QmpClient) => Promise<T>): Promise<T | undefined> {
  try {
    const client = await QmpClient.connect(controlSocketPath(name), { timeoutMs: LISTING_MS_MAX });
    if (client === undefined) {
      return undefined;
    }
    try {
      return await question(client);
    } finally {
      client.close();
    }
  } catch {
    // Who may not ask, or gets no answer, still gets the rest of the list.
    return undefined;
  }
}

/** The block node of an export, which has one. */
export async function queryNode(client: QmpClient): Promise<ServedNode | undefined> {
  const nodes = await client.execute('query-named-block-nodes');
  const node = Array.isArray(nodes) ? nodes[0] : undefined;
  if (!isJsonObject(node) || !isJsonObject(node['image'])) {
    return undefined;
  }
  return {
    nodeName: String(node['node-name']),
    image: String(node['image']['filename']),
    size: Number(node['image']['virtual-size']),
    readOnly: node['ro'] === true,
  };
}

/** Of a disk of this machine, as its users see it. */
export function blockDeviceSize(path: string | undefined): number | undefined {
  if (path === undefined) {
    return undefined;
  }
  try {
    // sysfs counts in sectors of 512 bytes, whatever the block size.
    return Number(readFileSync(`/sys/block/${basename(path)}/size`, 'utf8')) * sectorBytes;
  } catch {
    return undefined;
  }
}
