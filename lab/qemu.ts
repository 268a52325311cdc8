import type { Accelerator } from './accelerator.js';
import type { Kernel } from './kernel.js';

/** File descriptors that QEMU inherits, each one end of a socket pair. */
export const CONSOLE_FD = 3;
export const CONTROL_FD = 4;
export const OUTPUT_FD = 5;
export const TERMINAL_FD = 6;

export interface MachineShape {
  kernel: Kernel;
  initramfs: string;
  /** The directory to share as the guest's root. */
  root: string;
  results: string | undefined;
  accelerator: Accelerator;
  smp: number;
  memoryMib: number;
  verbose: boolean;
  /** Memory in a file that back-ends of vhost-user devices can map. */
  sharedMemory: boolean | 'huge';
  /** More of QEMU's own arguments. */
  extra: readonly string[];
}

/** In QEMU's option lists a comma separates, and a doubled one is a comma. */
function quote(value: string): string {
  return value.replaceAll(',', ',,');
}

function share(tag: string, path: string, options: string): string[] {
  return [
    ...['-fsdev', `local,id=${tag},path=${quote(path)},security_model=none,multidevs=remap${options}`],
    ...['-device', `virtio-9p-pci,fsdev=${tag},mount_tag=${tag}`],
  ];
}

function socket(id: string, fd: number): string[] {
  return ['-chardev', `socket,id=${id},fd=${fd}`];
}

export function kernelCommandLine(verbose: boolean): string {
  return [
    'console=hvc0',
    verbose ? 'loglevel=7' : 'quiet',
    // A panic ends the machine at once (with -no-reboot), and the lab says so.
    'panic=-1',
    // What costs time under emulation and gives nothing to a machine that lives for one job.
    'nokaslr mitigations=off tsc=reliable no_timer_check random.trust_cpu=on',
    'audit=0 selinux=0 apparmor=0 nowatchdog cryptomgr.notests',
  ].join(' ');
}

function pages({ sharedMemory }: MachineShape): string {
  return sharedMemory === 'huge' ? ',hugetlb=on,hugetlbsize=2M' : '';
}

export function qemuArguments(shape: MachineShape): string[] {
  const { kernel, initramfs, accelerator } = shape;
  return [
    ...['-M', 'q35,usb=off,vmport=off', '-nodefaults', '-no-user-config', '-vga', 'none', '-display', 'none'],
    ...(accelerator === 'kvm'
      ? ['-accel', 'kvm', '-cpu', 'host']
      : ['-accel', 'tcg,thread=multi', '-cpu', 'max,la57=off']),
    ...['-smp', String(shape.smp), '-m', String(shape.memoryMib), '-no-reboot'],
    ...(shape.sharedMemory
      ? [
          ...['-object', `memory-backend-memfd,id=memory,size=${shape.memoryMib}M,share=on${pages(shape)}`],
          ...['-machine', 'memory-backend=memory'],
        ]
      : []),
    ...['-kernel', kernel.vmlinux, '-initrd', initramfs, '-append', kernelCommandLine(shape.verbose)],

    ...share('host-root', shape.root, ',readonly=on'),
    ...share('modules', `${kernel.modules}/lib/modules`, ',readonly=on'),
    ...(shape.results === undefined ? [] : share('results', shape.results, '')),

    // The kernel's console, a terminal for interactive use, and two ports that carry bytes as they are.
    ...socket('console', CONSOLE_FD),
    ...socket('control', CONTROL_FD),
    ...socket('output', OUTPUT_FD),
    ...socket('terminal', TERMINAL_FD),
    ...['-device', 'virtio-serial-pci'],
    ...['-device', 'virtconsole,chardev=console'],
    ...['-device', 'virtconsole,chardev=terminal'],
    ...['-device', 'virtserialport,chardev=control,name=control'],
    ...['-device', 'virtserialport,chardev=output,name=output'],
    ...shape.extra,
  ];
}
