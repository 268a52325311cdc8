import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';

import { LabError } from './errors.js';
import { run } from './tools.js';

const ELF_MAGIC = '7f454c46';

/** Offsets in the setup header: Documentation/arch/x86/boot.rst. */
const SETUP_SECTORS = 0x1f1;
const HEADER_MAGIC = 0x202;
const PAYLOAD_OFFSET = 0x248;
const PAYLOAD_LENGTH = 0x24c;

/**
 * Takes the ELF kernel out of a bzImage and writes it to `target`: QEMU starts it directly, and an emulated
 * processor is spared seconds of decompression at every boot.
 */
export async function extractVmlinux(bzImage: string, target: string): Promise<void> {
  const image = readFileSync(bzImage);
  if (image.toString('latin1', HEADER_MAGIC, HEADER_MAGIC + 4) !== 'HdrS') {
    throw new LabError(`${bzImage} has no Linux boot header: it isn't a bzImage.`);
  }
  const start = (image[SETUP_SECTORS] + 1) * 512 + image.readUInt32LE(PAYLOAD_OFFSET);
  const payload = image.subarray(start, start + image.readUInt32LE(PAYLOAD_LENGTH));
  const magic = payload.toString('hex', 0, 4);

  let kernel: Buffer;
  if (magic === ELF_MAGIC) kernel = payload;
  else if (magic.startsWith('1f8b')) kernel = gunzipSync(payload.subarray(0, -4));
  else if (magic === '28b52ffd') kernel = await decompressWith('zstd', payload, target);
  else if (magic === 'fd377a58') kernel = await decompressWith('xz', payload, target);
  else
    throw new LabError(
      `${bzImage}: the kernel inside is compressed in an unknown way (it starts with ${magic}).`,
    );

  if (kernel.toString('hex', 0, 4) !== ELF_MAGIC) {
    throw new LabError(`${bzImage}: what was unpacked from it isn't an ELF file.`);
  }
  writeFileSync(target, kernel);
}

async function decompressWith(tool: 'zstd' | 'xz', payload: Buffer, target: string): Promise<Buffer> {
  const packed = `${target}.packed`;
  // The kernel's build appends the unpacked size, four bytes that are no part of the compressed stream.
  writeFileSync(packed, payload.subarray(0, -4));
  try {
    return await run(tool, ['--decompress', '--stdout', packed, ...(tool === 'xz' ? ['--format=xz'] : [])]);
  } finally {
    rmSync(packed);
  }
}
