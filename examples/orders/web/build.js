/** Builds the page into a folder: `node build.js FOLDER`, with `--development` as React's StrictMode needs it. */
import { build } from 'esbuild'
import { copyFile, mkdir } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'

const here = (path) => fileURLToPath(new URL(path, import.meta.url))
const [folder] = process.argv.slice(2)
if (!folder) throw new Error('name the folder to build into: node build.js FOLDER')
const development = process.argv.includes('--development')

await mkdir(folder, { recursive: true })
await build({
  entryPoints: { counter: here('src/main.tsx') },
  absWorkingDir: here('.'),
  outdir: folder,
  bundle: true,
  format: 'esm',
  target: 'es2022',
  jsx: 'automatic',
  jsxDev: false,
  minify: !development,
  // No names of files and folders in what is built: it is the same wherever that happens.
  legalComments: 'none',
  define: { 'process.env.NODE_ENV': development ? '"development"' : '"production"' },
  // The client has a React of its own to be tested with; the page is to have one alone.
  alias: { react: here('node_modules/react'), 'react-dom': here('node_modules/react-dom') },
  logLevel: 'warning',
})
await copyFile(here('src/index.html'), `${folder}/index.html`)
