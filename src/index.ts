/**
 * The public API: virtio devices from code. `exportDisk` gives a disk to this machine, `defineBlockDriver`
 * makes a disk of your own functions, `exportDevice` a virtio device of any kind. `openSoftwareDisk` needs neither
 * the kernel's VDUSE nor privileges: the software driver plays the kernel.
 */
export { type ErrorCode, SystemCallError, VduseError } from './base/errors.js';
export { createLogger, type Logger, type LogSettings } from './base/log.js';
export type { BlockDevice } from './block/block-device.js';
export { type BlockDriver, type BlockSource, defineBlockDriver } from './block/define-block-driver.js';
export type {
  BlockNodeOptions,
  FileNodeOptions,
  MemoryNodeOptions,
  NullNodeOptions,
} from './block/node.js';
export { type DeviceOptions, type ExportedDevice, exportDevice } from './daemon/export-device.js';
export { type DiskOptions, type ExportedDisk, exportDisk } from './daemon/export-disk.js';
export {
  type NbdSettings,
  type OpenedSoftwareDisk,
  openSoftwareDisk,
  type SoftwareDiskSettings,
} from './daemon/open-software-disk.js';
export type { DeviceDefinition } from './device/custom/custom-device.js';
export type { DeviceRequest, RequestFunction } from './device/custom/custom-requests.js';
export type { DeviceStatistics } from './device/statistics.js';
export type { NbdAddress } from './nbd/nbd-server.js';
export type { BlkFrontend, SharedBuffer } from './software-vduse/blk-frontend.js';
export {
  SoftwareVduse,
  type SoftwareVduseOptions,
  type VdpaBusDriver,
} from './software-vduse/software-vduse.js';
export type { VduseTrace, VduseTraceEvent } from './software-vduse/trace.js';
export { type VhostDevice, type VhostQueue, VhostVdpa } from './software-vduse/vhost-vdpa.js';
export { VirtioVdpa } from './software-vduse/virtio-vdpa.js';
