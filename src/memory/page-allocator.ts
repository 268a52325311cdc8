// Hot file: allocate and free allocate nothing and do not throw.
/** Runs of pages in a fixed range, next fit: what an IOVA allocator is for. */
export class PageAllocator {
  readonly pageCount: number;
  readonly #used: Uint8Array;
  #next = 0;
  #freePages: number;

  constructor(pageCount: number) {
    this.pageCount = pageCount;
    this.#used = new Uint8Array(pageCount);
    this.#freePages = pageCount;
  }

  get freePages(): number {
    return this.#freePages;
  }

  /** The first page of a free run, or -1 where there is none so long. */
  allocate(pages: number): number {
    if (pages > this.#freePages) {
      return -1;
    }
    const found = this.#find(pages, this.#next, this.pageCount);
    const first = found >= 0 ? found : this.#find(pages, 0, Math.min(this.pageCount, this.#next + pages));
    if (first >= 0) {
      this.#used.fill(1, first, first + pages);
      this.#freePages -= pages;
      this.#next = first + pages;
    }
    return first;
  }

  free(first: number, pages: number): void {
    this.#used.fill(0, first, first + pages);
    this.#freePages += pages;
    // What was used last is warm in the caches.
    this.#next = Math.min(this.#next, first);
  }

  #find(pages: number, from: number, to: number): number {
    let run = 0;
    for (let page = from; page < to; page++) {
      run = this.#used[page] === 0 ? run + 1 : 0;
      if (run === pages) {
        return page - pages + 1;
      }
    }
    return -1;
  }
}
