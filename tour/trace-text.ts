/** The software driver's events as lines for a reader. */
import { decodeRequest, type VduseRequest } from '../src/native/vduse-abi.js';
import type { VduseTraceEvent } from '../src/software-vduse/trace.js';

const statusBits = [
  [1, 'ACKNOWLEDGE'],
  [2, 'DRIVER'],
  [8, 'FEATURES_OK'],
  [4, 'DRIVER_OK'],
  [64, 'NEEDS_RESET'],
  [128, 'FAILED'],
] as const;

function describeStatus(status: number): string {
  const names = statusBits.filter(([bit]) => (status & bit) !== 0).map(([, name]) => name);
  return names.length === 0 ? 'reset' : names.join(' + ');
}

function describeRequest(request: VduseRequest): string {
  switch (request.type) {
    case 'set-status':
      return `SET_STATUS: ${describeStatus(request.status)}`;
    case 'get-vq-state':
      return `GET_VQ_STATE of queue ${request.index}`;
    case 'update-iotlb':
      return `UPDATE_IOTLB from ${hex(request.start)} to ${hex(request.last)}`;
    case 'set-vq-group-asid':
      return `SET_VQ_GROUP_ASID: group ${request.group}, address space ${request.addressSpace}`;
    case 'unknown':
      return `message of type ${request.number}`;
  }
}

function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}

/** Worth a line in the short trace: what the driver says and what it maps, without the answers. */
export function isMilestone(event: VduseTraceEvent): boolean {
  return event.kind === 'message' || event.kind === 'map';
}

export function describeEvent(event: VduseTraceEvent): string {
  switch (event.kind) {
    case 'message': {
      const request = decodeRequest(event.bytes);
      return `driver -> device   #${request.id} ${describeRequest(request)}`;
    }
    case 'answer': {
      const view = new DataView(event.bytes.buffer, event.bytes.byteOffset);
      return `device -> driver   #${view.getUint32(0, true)} ${view.getUint32(4, true) === 0 ? 'OK' : 'FAILED'}`;
    }
    case 'map':
    case 'unmap': {
      const { start, length } = event.map;
      return `IOMMU              ${event.kind} ${hex(start)} to ${hex(start + length - 1)} (${length} bytes)`;
    }
  }
}
