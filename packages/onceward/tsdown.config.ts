import { defineConfig } from 'tsdown'

export default defineConfig({
  entry: { index: 'src/index.ts', react: 'src/react/index.ts', indexeddb: 'src/indexeddb.ts', forms: 'src/forms.ts' },
  format: 'esm',
  platform: 'neutral',
  target: 'es2022',
  dts: true,
  clean: true,
  minify: false,
  fixedExtension: false,
})
