import { rolldown } from 'rolldown'
import { gzipSync } from 'node:zlib'
import { writeFileSync } from 'node:fs'
const root='/work/w/f/packages/onceward/'
const which=process.argv[2]??'fetch'
const s = which==='fetch' ? `export { idempotentFetch, createIdempotentFetch } from './src/index.ts'` : `export { useIdempotentMutation } from './src/react/index.ts'`
const build=async(stub)=>{const b=await rolldown({input:'entry',cwd:root,platform:'browser',external:['react'],transform:{target:'es2022'},plugins:[{name:'e',resolveId:i=>i==='entry'?root+'entry.tsx':undefined,load:i=>i===root+'entry.tsx'?{code:s,moduleType:'tsx'}:undefined}]})
const {output}=await b.generate({format:'esm',minify:true,codeSplitting:false}); return output[0]}
const o=await build()
writeFileSync('/tmp/min-'+which+'.js',o.code)
const o2=await (async()=>{const b=await rolldown({input:'entry',cwd:root,platform:'browser',external:['react'],plugins:[{name:'e',resolveId:i=>i==='entry'?root+'entry.tsx':undefined,load:i=>i===root+'entry.tsx'?{code:s,moduleType:'tsx'}:undefined}]});const {output}=await b.generate({format:'esm',minify:false,codeSplitting:false});return output[0]})()
for (const [k,m] of Object.entries(o2.modules)) if(m.renderedLength>200) console.log(k.replace(root,''), m.renderedLength)
console.log('total',gzipSync(o.code,{level:9}).length, o.code.length)
if (process.argv[3]) {
const { minifySync } = await import('rolldown/experimental').catch(()=>({}))
const parts=Object.entries(o2.modules).map(([k,m])=>[k.replace(root,''), m.code??'']).map(([k,c])=>{ if(!c) return [k,'']; const r=minifySync(k+'.js',c,{compress:true,mangle:true}); return [k,r.code]})
const all=parts.map(p=>p[1]).join('\n'); const g=x=>gzipSync(x,{level:9}).length
console.log('concat',g(all))
for(const [k] of parts) console.log(k, g(all)-g(parts.filter(p=>p[0]!==k).map(p=>p[1]).join('\n')))
}
