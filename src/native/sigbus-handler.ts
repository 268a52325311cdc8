/**
 * The machine code of the SIGBUS handler (sigbus-guard.ts), for x86-64 and arm64. It runs on the thread that faulted,
 * between two of its instructions, so it makes system calls and nothing else; registers are its own, for the kernel
 * restores those of the interrupted code.
 *
 *     void handler(int signal, siginfo_t *info, void *context) {
 *       for (entry of table)
 *         if (entry.start <= info->si_addr && info->si_addr < entry.end) {
 *           mmap(entry.start, entry.end - entry.start, READ | WRITE, PRIVATE | FIXED | ANONYMOUS | NORESERVE, -1, 0);
 *           entry.hits++;
 *           return;              // the access is made again and finds zeroes
 *         }
 *       rt_sigaction(SIGBUS, &previous, NULL, 8);
 *     }                          // the fault repeats, and meets what was there before: mostly the end
 *
 * An entry's end is read before and after its start: an entry that is being changed has the end 0 meanwhile, so two
 * equal ends mean that the start between them is theirs.
 */
import { VduseError } from '../base/errors.js';

/** Entries of the table, and 64-bit words of each: start, end, hits, and a word of the guard's own. */
export const guardEntriesMax = 4096;
export const guardEntryWords = 4;

/** The page: magic, address of the table, previous action (4 words), code. */
export const handlerMagic = 0x7364_7562_7573_6475n;
export const handlerOffset = 48;

const x64Code = [
  '4c 8b 46 10', //             mov r8, [rsi + 16]        info->si_addr
  '4c 8b 0d cd ff ff ff', //    mov r9, [rip + table]
  'b9 00 10 00 00', //          mov ecx, 4096
  '4d 8b 51 08', //       next: mov r10, [r9 + 8]         end
  '4d 39 d0', //                cmp r8, r10
  '73 3f', //                   jae skip
  '49 8b 39', //                mov rdi, [r9]             start
  '49 39 f8', //                cmp r8, rdi
  '72 37', //                   jb skip
  '4d 3b 51 08', //             cmp r10, [r9 + 8]         still the same end
  '75 31', //                   jne skip
  '4d 89 cc', //                mov r12, r9
  '4c 89 d6', //                mov rsi, r10
  '48 29 fe', //                sub rsi, rdi
  'ba 03 00 00 00', //          mov edx, 3                PROT_READ | PROT_WRITE
  '41 ba 32 40 00 00', //       mov r10d, 0x4032          the flags
  '49 c7 c0 ff ff ff ff', //    mov r8, -1
  '45 31 c9', //                xor r9d, r9d
  'b8 09 00 00 00', //          mov eax, 9                mmap
  '0f 05', //                   syscall
  '48 39 f8', //                cmp rax, rdi
  '75 0f', //                   jne default
  'f0 49 ff 44 24 10', //       lock inc qword [r12 + 16] hits
  'c3', //                      ret
  '49 83 c1 20', //       skip: add r9, 32
  'ff c9', //                   dec ecx
  '75 b0', //                   jnz next
  'bf 07 00 00 00', // default: mov edi, 7                SIGBUS
  '48 8d 35 74 ff ff ff', //    lea rsi, [rip + previous]
  '31 d2', //                   xor edx, edx
  '41 ba 08 00 00 00', //       mov r10d, 8
  'b8 0d 00 00 00', //          mov eax, 13               rt_sigaction
  '0f 05', //                   syscall
  'c3', //                      ret
];

/** Where the handler returns to: the kernel wants it of us on x86-64; on arm64 it has its own. */
const x64Restorer = [
  'b8 0f 00 00 00', //          mov eax, 15               rt_sigreturn
  '0f 05', //                   syscall
];

/** Instruction words, as the assembler prints them. */
const arm64Code = [
  'f9400829', //          ldr x9, [x1, #16]          info->si_addr
  '58fffeaa', //          ldr x10, table
  '5282000b', //          mov w11, #4096
  '9100214c', //    next: add x12, x10, #8
  'c8dffd8d', //          ldar x13, [x12]            end
  'eb0d013f', //          cmp x9, x13
  '540002e2', //          b.hs skip
  'c8dffd4e', //          ldar x14, [x10]            start
  'eb0e013f', //          cmp x9, x14
  '54000283', //          b.lo skip
  'c8dffd8f', //          ldar x15, [x12]
  'eb0f01bf', //          cmp x13, x15               still the same end
  '54000221', //          b.ne skip
  'aa0e03e0', //          mov x0, x14
  'cb0e01a1', //          sub x1, x13, x14
  'd2800062', //          mov x2, #3                 PROT_READ | PROT_WRITE
  'd2880643', //          mov x3, #0x4032            the flags
  '92800004', //          mov x4, #-1
  'd2800005', //          mov x5, #0
  'd2801bc8', //          mov x8, #222               mmap
  'd4000001', //          svc #0
  'eb0e001f', //          cmp x0, x14
  '54000141', //          b.ne default
  '9100414c', //          add x12, x10, #16
  'c85ffd8f', //   again: ldaxr x15, [x12]           hits
  '910005ef', //          add x15, x15, #1
  'c810fd8f', //          stlxr w16, x15, [x12]
  '35ffffb0', //          cbnz w16, again
  'd65f03c0', //          ret
  '9100814a', //    skip: add x10, x10, #32
  '7100056b', //          subs w11, w11, #1
  '54fffc81', //          b.ne next
  'd28000e0', // default: mov x0, #7                 SIGBUS
  '10fffae1', //          adr x1, previous
  'd2800002', //          mov x2, #0
  'd2800103', //          mov x3, #8
  'd28010c8', //          mov x8, #134               rt_sigaction
  'd4000001', //          svc #0
  'd65f03c0', //          ret
];

function bytesOf(instructions: readonly string[]): Uint8Array {
  return Buffer.from(instructions.join('').replaceAll(' ', ''), 'hex');
}

/** Where sigreturn's code is in the page; undefined where the kernel brings it. */
export const restorerOffset = process.arch === 'x64' ? handlerOffset + bytesOf(x64Code).length : undefined;

function codeOf(architecture: string): Uint8Array {
  switch (architecture) {
    case 'x64':
      return bytesOf([...x64Code, ...x64Restorer]);
    case 'arm64':
      // Words are printed with the highest byte first, and lie in memory with the lowest first.
      return Buffer.from(bytesOf(arm64Code)).swap32();
    default:
      throw new VduseError('NOT_SUPPORTED', `there is no SIGBUS handler for ${architecture}`);
  }
}

/** What the handler's page holds from its start. `previous` is the action before ours (struct sigaction). */
export function handlerPage(
  parts: { table: number; previous: BigUint64Array },
  architecture: string = process.arch,
): Uint8Array {
  const head = BigUint64Array.of(handlerMagic, BigInt(parts.table), ...parts.previous);
  return Buffer.concat([new Uint8Array(head.buffer), codeOf(architecture)]);
}
