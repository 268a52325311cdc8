/** In front of each result's JSON on stdout. */
export const resultMark = '##conformance ';
