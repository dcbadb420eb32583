import { rolldown } from 'rolldown'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** A page's own bundler on this source, from the package as it was built: the entry first, then the chunks. */
export async function chunks(source: string, { minify = false, codeSplitting = true, external = [] as string[] } = {}) {
  const built = await rolldown({
    input: 'entry',
    cwd: root,
    platform: 'browser',
    external,
    transform: { define: { 'process.env.NODE_ENV': '"development"' } },
    plugins: [{
      name: 'entry',
      resolveId: (id: string) => (id === 'entry' ? `${root}entry.tsx` : undefined),
      load: (id: string) => (id === `${root}entry.tsx` ? { code: source, moduleType: 'tsx' } : undefined),
    }],
  })
  const { output } = await built.generate({ format: 'esm', minify, codeSplitting })
  await built.close()
  return output.filter((it) => it.type === 'chunk')
}

/** One module with everything in it. */
export async function bundle(source: string): Promise<string> {
  return (await chunks(source, { codeSplitting: false }))[0]!.code
}
