/** In front of what the host is to do, on a line of the machine's stdout. */
export const hostMark = '##host ';
