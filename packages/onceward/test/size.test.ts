import { gzipSync } from 'node:zlib'
import { expect, test } from 'vitest'
import { bundle } from './support/bundle.js'

/** The promise is 5 kB, in bytes of gzip, for what a page loads with memory and web storage. */
const GZIP_BYTES_MAX = 5 * 1000

test('what a page loads is at most 5 kB', async () => {
  const code = await bundle(`export { idempotentFetch, createIdempotentFetch } from 'onceward'`, { minify: true })
  const bytes = gzipSync(code, { level: 9 }).length
  console.log(`${bytes} bytes of gzip, ${code.length} minified`)
  expect(bytes).toBeLessThanOrEqual(GZIP_BYTES_MAX)
})

test('nothing is loaded that nobody names', async () => {
  expect((await bundle(`import 'onceward'`, { minify: true })).trim()).toBe('')
})
