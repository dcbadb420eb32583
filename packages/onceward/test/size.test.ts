import { build } from 'esbuild'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { expect, test } from 'vitest'
import { build as viteBuild, type Rollup } from 'vite'
import { chunks } from './support/bundle.js'

const root = fileURLToPath(new URL('..', import.meta.url))

/** Upper bounds in bytes of gzip, everything that a send needs included: nothing is loaded later. */
const SIZES: [name: string, source: string, max: number][] = [
  ['idempotentFetch', `export { idempotentFetch, createIdempotentFetch } from 'onceward'`, 9000],
  ['useIdempotentMutation', `export { useIdempotentMutation } from 'onceward/react'`, 11_700],
]

/** One file each, minified, without React. */
const BUNDLERS: Record<string, (source: string) => Promise<string[]>> = {
  rolldown: async (source) => (await chunks(source, { minify: true, external: ['react'] })).map(({ code }) => code),
  esbuild: async (source) => {
    const { outputFiles } = await build({
      stdin: { contents: source, resolveDir: root }, bundle: true, format: 'esm', minify: true, write: false, external: ['react'], splitting: true, outdir: 'out',
    })
    return outputFiles.map(({ text }) => text)
  },
  vite: async (source) => {
    const built = (await viteBuild({
      root, configFile: false, logLevel: 'silent',
      build: { write: false, minify: true, rollupOptions: { input: 'entry', external: ['react'], preserveEntrySignatures: 'strict' } },
      plugins: [{ name: 'entry', resolveId: (id) => (id === 'entry' ? `${root}entry.js` : undefined), load: (id) => (id === `${root}entry.js` ? source : undefined) }],
    })) as Rollup.RollupOutput
    return built.output.filter((it) => it.type === 'chunk').map(({ code }) => code)
  },
}

for (const [bundler, bundle] of Object.entries(BUNDLERS)) {
  for (const [name, source, max] of SIZES) {
    test(`size_of_${name}_by_${bundler}_is_within_its_bound_in_one_file`, async () => {
      const files = await bundle(source)
      const size = files.reduce((sum, code) => sum + gzipSync(code, { level: 9 }).length, 0)
      console.log(`${name} by ${bundler}: ${size} bytes of gzip`)
      expect(files).toHaveLength(1)
      expect(size).toBeLessThanOrEqual(max)
    })
  }
}

test('nothing_is_bundled_that_is_not_imported', async () => {
  // Only the listeners that notice that the page was left.
  expect((await chunks(`import 'onceward'`, { minify: true }))[0]!.code.trim()).toBe('')
})
