import { createIdempotentFetch, type IdempotentFetch } from './idempotentFetch.js'

/** `fetch` with every setting at its default. */
export const idempotentFetch: IdempotentFetch = /* @__PURE__ */ createIdempotentFetch()
