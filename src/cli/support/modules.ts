/** The kernel modules that an export needs, loaded in the order that decides which driver gets the device. */
import { loadModules } from '../../native/modules.js';

export type Binding = 'virtio' | 'vhost' | false;

export function modulesFor(binding: Binding): readonly string[] {
  switch (binding) {
    case 'virtio':
      return ['vduse', 'virtio_vdpa', 'virtio_blk'];
    case 'vhost':
      return ['vduse', 'vhost_vdpa'];
    case false:
      return ['vduse'];
  }
}

/** Loads what is missing. Returns the names of those that it loaded. Throws MODULE_MISSING or PERMISSION_DENIED. */
export function loadModulesFor(binding: Binding): Promise<string[]> {
  return loadModules(modulesFor(binding));
}
