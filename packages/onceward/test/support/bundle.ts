import { rolldown } from 'rolldown'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** One module, as a page's own bundler would make it of this source, from the package as it was built. */
export async function bundle(source: string, { minify = false } = {}): Promise<string> {
  const built = await rolldown({
    input: 'entry',
    cwd: root,
    platform: 'browser',
    transform: { define: { 'process.env.NODE_ENV': '"development"' } },
    plugins: [{
      name: 'entry',
      resolveId: (id: string) => (id === 'entry' ? `${root}entry.tsx` : undefined),
      load: (id: string) => (id === `${root}entry.tsx` ? { code: source, moduleType: 'tsx' } : undefined),
    }],
  })
  const { output } = await built.generate({ format: 'esm', minify, sourcemap: false, codeSplitting: false })
  await built.close()
  return output[0].code
}
